"""Difficulty that follows what the model has learned; pure Python, no training framework."""
