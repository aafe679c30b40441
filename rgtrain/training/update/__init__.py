"""The policy's update: packed groups, micro-batches, log-probabilities."""
