"""Reinforcement learning of language models on Reasoning Gym problems."""

__version__ = "0.1.0"
