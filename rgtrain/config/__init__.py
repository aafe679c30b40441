"""Compose a run's configuration, list its choices, and read it into typed values."""
