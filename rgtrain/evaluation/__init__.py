"""Measuring a model on Reasoning Gym problems: configuration, engine, run, results."""
