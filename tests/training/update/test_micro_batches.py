"""Micro-batches hold whole groups and every sequence once, within the limit on tokens."""

import numpy as np
import pytest

from rgtrain.training.update.micro_batches import split_into_micro_batches, split_rows


def sequences(group_sizes: list[int], *, prompt: int, response: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    prompts = [np.full(prompt, number) for number, size in enumerate(group_sizes) for _ in range(size)]
    return prompts, [np.zeros(response, dtype=np.int64) for _ in prompts]


def num_tokens(part: list[int], prompts, responses) -> int:
    return sum(len(responses[i]) for i in part) + sum(
        len(prompt) for prompt in {prompts[i].tobytes(): prompts[i] for i in part}.values()
    )


def test_a_mini_batch_that_fits_becomes_one_micro_batch():
    prompts, responses = sequences([4, 4], prompt=10, response=5)
    assert split_into_micro_batches(prompts, responses, max_tokens=60) == [list(range(8))]


@pytest.mark.parametrize("max_tokens", [30, 45, 61, 100])
def test_groups_stay_whole_within_the_limit(max_tokens):
    prompts, responses = sequences([4] * 7, prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=max_tokens)
    assert sorted(i for part in parts for i in part) == list(range(28))
    assert all(num_tokens(part, prompts, responses) <= max_tokens for part in parts)
    assert all(len({i // 4 for i in part}) * 4 == len(part) for part in parts)


def test_a_group_that_exceeds_the_limit_is_split():
    prompts, responses = sequences([8], prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=30)
    assert sorted(map(len, parts)) == [4, 4]


def test_groups_are_split_to_reach_the_agreed_number_of_micro_batches():
    prompts, responses = sequences([4], prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=100, num_parts_agreed=lambda needed: needed + 2)
    assert len(parts) == 3 and all(parts)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3]


def test_without_shared_prompts_every_sequence_counts_its_prompt():
    prompts, responses = sequences([4], prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=30, shares_prompts=False)
    assert sorted(map(len, parts)) == [2, 2]


def test_padded_rows_fit_into_the_limit_with_their_padding():
    lengths = [3, 50, 4, 20, 5, 19, 2]
    parts = split_rows(lengths, max_tokens=60)
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert all(len(part) * max(lengths[i] for i in part) <= 60 for part in parts)
    assert len(parts) == 3


def test_a_row_that_exceeds_the_limit_is_a_micro_batch():
    assert split_rows([80, 5, 5], max_tokens=60) == [[0], [1, 2]]


def test_padded_rows_are_split_to_reach_the_agreed_number_of_micro_batches():
    parts = split_rows([5, 5, 5, 5], max_tokens=100, num_parts_agreed=lambda needed: needed + 2)
    assert len(parts) == 3 and sorted(i for part in parts for i in part) == [0, 1, 2, 3]


def test_without_enough_sequences_the_last_micro_batches_are_empty():
    prompts, responses = sequences([2], prompt=10, response=5)
    parts = split_into_micro_batches(prompts, responses, max_tokens=100, num_parts_agreed=lambda needed: 4)
    assert parts == [[0], [1], [], []]
    assert split_rows([5, 7], max_tokens=100, num_parts_agreed=lambda needed: 3) == [[1], [0], []]


def test_a_group_is_divided_if_that_saves_micro_batches():
    # Two groups of 90 tokens do not fit into 150, but three micro-batches hold five of them with few repeated prompts.
    prompts, responses = sequences([9] * 5, prompt=1, response=10)
    parts = split_into_micro_batches(prompts, responses, max_tokens=155)
    assert len(parts) == 3
    assert sorted(i for part in parts for i in part) == list(range(45))
    assert all(num_tokens(part, prompts, responses) <= 155 for part in parts)


def test_the_largest_micro_batch_is_first():
    prompts, responses = sequences([1, 5, 2, 4], prompt=10, response=20)
    parts = split_into_micro_batches(prompts, responses, max_tokens=110)
    sizes = [num_tokens(part, prompts, responses) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
