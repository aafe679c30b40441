"""Rewards that differ between the completions of a random model, which solves nothing."""


def letters(completion):
    return len(set(completion.text)) / 100


def odd(completion):
    """Alike in about half of all pairs of completions."""
    return float(len(completion.text) % 2)
