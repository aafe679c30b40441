"""Adapt the difficulty of problems to the model. Pure Python, without a training framework."""
