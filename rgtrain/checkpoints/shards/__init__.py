"""Read sharded checkpoints: files of ranks, merged into whole tensors. Nothing in here knows the export."""
