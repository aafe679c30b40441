"""Read sharded checkpoints and merge the per-rank shards into whole tensors. Independent of the export."""
