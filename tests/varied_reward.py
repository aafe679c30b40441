"""A reward that differs between the completions of a random model, which solves nothing."""


def letters(completion):
    return len(set(completion.text)) / 100
