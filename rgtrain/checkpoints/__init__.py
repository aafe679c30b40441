"""Store, find, read and export the checkpoints of a run."""
