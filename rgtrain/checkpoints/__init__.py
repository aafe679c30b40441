"""The checkpoints of a run: stored, looked up, read, and exported to the Hugging Face format."""
