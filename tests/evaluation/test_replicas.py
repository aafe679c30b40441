"""Copies of a model take prompts from one queue, and the sampled completions do not depend on which copy takes them."""

from collections import Counter
from contextlib import closing

import pytest
from support.scripted_engine import MAX_NUM_SEQS, ScriptedEngine

from rgtrain.evaluation.engine_interface import EngineFailed, Prompt, Sampling
from rgtrain.evaluation.replicas import ReplicatedEngine, SharedPrompts
from rgtrain.evaluation.vllm_engine import NumberedPrompt, VllmSettings, prompt_seed

GREEDY, SAMPLED = Sampling(8, 0), Sampling(8, 1.0)


def prompts_of(*lengths: int, num_samples: int = 1) -> list[Prompt]:
    return [Prompt([], [length], num_samples) for length in lengths]


def started(*, seeds: bool) -> ReplicatedEngine:
    settings = VllmSettings("model", "seeds" if seeds else "float32", 64, seed=7)
    return ReplicatedEngine(settings, num_copies=2, start=ScriptedEngine)


@pytest.fixture(scope="module")
def engine():
    with closing(started(seeds=True)) as engine:
        yield engine


def answers(engine: ReplicatedEngine, prompts: list[Prompt], sampling: Sampling) -> list[tuple[int, list[str]]]:
    """Return each completion's position with its copy, seed and the number of completions generated together."""
    return [(position, completion.text.split()) for position, completion in engine.generate(prompts, sampling)]


def test_a_copy_with_short_answers_takes_the_prompts_that_wait(engine):
    # The first copy starts with the long answers.
    lengths = [60, 1] * MAX_NUM_SEQS + [1] * 40
    received = answers(engine, prompts_of(*lengths), GREEDY)
    assert sorted(position for position, _ in received) == list(range(len(lengths)))
    copies = Counter(copy for _, (copy, *_) in received)
    assert min(copies.values()) < len(lengths) // 4
    # No copy holds more than it generates together, and a reserve of one.
    assert max(int(together) for _, (*_, together) in received) == MAX_NUM_SEQS + 1
    assert {seed for _, (_, seed, _) in received} == {"None"}


def test_sampled_completions_have_the_seeds_of_their_prompts_whichever_copy_generates_them(engine):
    received = answers(engine, prompts_of(3, 9, 1, 5, 2, 8, 1, num_samples=3), SAMPLED)
    assert len({copy for _, (copy, *_) in received}) == 2
    seeds = sorted((position, int(seed)) for position, (_, seed, _) in received)
    assert seeds == [(position, prompt_seed(7, position) + index) for position in range(7) for index in range(3)]


def test_few_prompts_and_none_are_answered(engine):
    assert answers(engine, [], GREEDY) == []
    [(position, _)] = answers(engine, prompts_of(2), GREEDY)
    assert position == 0


def test_the_answers_of_a_dead_copy_are_kept(engine):
    lengths = [1, 1, 1, 1, 0] + [1] * 30
    received = []
    with pytest.raises(EngineFailed, match="copy . of the model ended"):
        received.extend(position for position, _ in engine.generate(prompts_of(*lengths), GREEDY))
    assert 0 < len(received) < len(lengths)
    assert 4 not in received


def test_engines_whose_sampling_depends_on_the_other_prompts_get_them_dealt_in_advance():
    with closing(started(seeds=False)) as engine:
        received = answers(engine, prompts_of(*[9, 1] * 8), SAMPLED)
        copies: dict[str, list[int]] = {}
        for position, (copy, *_) in received:
            copies.setdefault(copy, []).append(position)
        assert sorted(map(sorted, copies.values())) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
        assert {seed for _, (_, seed, _) in received} == {"None"}


@pytest.mark.parametrize(
    ("num_samples", "num_prompts", "limit", "expected"),
    [
        (1, 6, 100, [2, 2, 2]),
        (1, 7, 100, [3, 2, 2]),
        # One prompt is divided.
        (32, 2, 100, [22, 21, 21]),
        # While others wait, prompts stay whole.
        (10, 30, 16, [20, 20, 20]),
        (8, 1, 1, [3, 3, 2]),
    ],
)
def test_copies_start_with_equal_numbers_of_completions(num_samples, num_prompts, limit, expected):
    numbered = [NumberedPrompt(number, Prompt([], [1], num_samples), 100 * number) for number in range(num_prompts)]
    shared = SharedPrompts(numbered, limits=[limit] * 3)
    assert [sum(one.prompt.num_samples for one in first) for first in shared.first] == expected
    taken = [one for first in shared.first for one in first]
    while more := shared.take(limit):
        taken += more
    assert shared.num_waiting == 0
    seeds = sorted(one.seed + index for one in taken for index in range(one.prompt.num_samples))
    assert seeds == [100 * number + index for number in range(num_prompts) for index in range(num_samples)]
