"""Evaluation of a model on Reasoning Gym problems: configuration, engine, run and results."""
