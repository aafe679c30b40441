"""Life cycle of a run: its lock, log, requests to stop, and exits."""
