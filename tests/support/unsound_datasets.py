"""Datasets that reward a constant answer according to the committed audit."""

PAYING = ("game_of_life_halting", "puzzle24", "complex_arithmetic", "coin_flip", "game_of_life", "propositional_logic")
