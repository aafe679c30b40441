"""Reinforcement learning of language models on Reasoning Gym problems: the library behind the entry points."""
