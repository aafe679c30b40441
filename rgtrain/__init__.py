"""Reinforcement learning of language models on Reasoning Gym problems."""
