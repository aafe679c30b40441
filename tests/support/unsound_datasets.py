"""Datasets that the committed audit finds to pay for a constant answer."""

PAYING = ("game_of_life_halting", "puzzle24", "complex_arithmetic", "coin_flip", "game_of_life", "propositional_logic")
