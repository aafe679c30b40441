"""Update the policy with packed groups, whole-group micro-batches and memory-efficient log-probabilities."""
