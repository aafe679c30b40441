"""Models that need no hub, and the shapes of known models."""
