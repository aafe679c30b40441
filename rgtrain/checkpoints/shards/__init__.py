"""Read sharded checkpoints: files of ranks, merged into whole tensors."""
