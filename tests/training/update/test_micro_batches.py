"""Micro-batches hold whole groups, every sequence once, and as many tokens as are allowed."""

import numpy as np
import pytest

from rgtrain.training.update.micro_batches import split_into_micro_batches


def sequences(group_sizes: list[int], *, prompt: int, response: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    prompts = [np.full(prompt, number) for number, size in enumerate(group_sizes) for _ in range(size)]
    return prompts, [np.zeros(response, dtype=np.int64) for _ in prompts]


def num_tokens(part: list[int], prompts, responses) -> int:
    return sum(len(responses[i]) for i in part) + sum(
        len(prompt) for prompt in {prompts[i].tobytes(): prompts[i] for i in part}.values()
    )


def test_what_fits_is_one_micro_batch():
    prompts, responses = sequences([4, 4], prompt=10, response=5)
    assert split_into_micro_batches(prompts, responses, max_tokens=60) == [list(range(8))]


@pytest.mark.parametrize("max_tokens", [30, 45, 61, 100])
def test_groups_stay_whole_within_the_limit(max_tokens):
    prompts, responses = sequences([4] * 7, prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=max_tokens)
    assert sorted(i for part in parts for i in part) == list(range(28))
    assert all(num_tokens(part, prompts, responses) <= max_tokens for part in parts)
    assert all(len({i // 4 for i in part}) * 4 == len(part) for part in parts)


def test_a_group_too_large_is_split():
    prompts, responses = sequences([8], prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=30)
    assert sorted(map(len, parts)) == [4, 4]


def test_all_ranks_run_as_many_as_the_one_that_needs_most():
    prompts, responses = sequences([4], prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=100, num_parts_agreed=lambda needed: needed + 2)
    assert len(parts) == 3 and all(parts)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3]
