"""An environment as an HTTP service."""
