"""Models that need no download from a hub, and the shapes of known models."""
