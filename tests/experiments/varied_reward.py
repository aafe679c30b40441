"""Rewards that differ between completions of a random model, although it solves no problem."""


def letters(completion):
    return len(set(completion.text)) / 100


def odd(completion):
    """Return 0 or 1, equal for about half of all pairs of completions."""
    return float(len(completion.text) % 2)
