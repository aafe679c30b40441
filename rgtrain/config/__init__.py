"""A run's configuration: composed, listed, and read into typed values."""
