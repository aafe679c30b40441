"""The reward of a completion has the scorer's accuracy, the configured parts, and counts of scoring failures."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rgtrain.problems import Scorer, build_mixture, parse_mixture
from rgtrain.problems import rewards as reward_parts
from rgtrain.problems.group_rewards import CompletionReward, FinishedCompletion, GroupRewards, failure_counts
from rgtrain.problems.scoring import FAILURES
from rgtrain.problems.scoring.score import Score

PARTS = {"accuracy": {}, "format": {"weight": 0.5, "thinking": False}, "length": {}}
MAX_TOKENS = 100


@pytest.fixture(scope="module")
def rewards() -> Iterator[GroupRewards]:
    with Scorer(num_workers=2, timeout_s=60) as scorer:
        yield GroupRewards(PARTS, scorer=scorer, max_tokens=MAX_TOKENS)


def entry_of(dataset: str) -> Mapping[str, Any]:
    specs = parse_mixture({dataset: {"weight": 1, "config": None}})
    return build_mixture(specs, seed=1, size=1)[0].entry


@pytest.fixture(scope="module")
def chain_sum() -> Mapping[str, Any]:
    return entry_of("chain_sum")


def compute(
    rewards: GroupRewards, entry: Mapping[str, Any], *texts: str, lengths: list[int] | None = None
) -> list[tuple[float, dict[str, float]]]:
    rewarded = asyncio.run(rewards.compute(finished(*texts, lengths=lengths), entry))
    return [(one.reward, one.details) for one in rewarded]


def finished(*texts: str, lengths: list[int] | None = None) -> list[FinishedCompletion]:
    return [FinishedCompletion(*pair) for pair in zip(texts, lengths or [7] * len(texts), strict=True)]


def answered(answer: object) -> str:
    return f"<answer>{answer}</answer>"


def test_a_right_answer_earns_the_accuracy_and_the_other_parts(rewards, chain_sum):
    [(reward, details)] = compute(rewards, chain_sum, answered(chain_sum["answer"]))
    assert reward == 1.5
    assert (details["acc"], details["solved"], details["answered"]) == (1.0, 1.0, 1.0)


def test_a_right_answer_in_the_wrong_format_loses_that_part_only(rewards, chain_sum):
    [(reward, details)] = compute(rewards, chain_sum, f"It is {answered(chain_sum['answer'])}")
    assert (reward, details["acc"], details["reward_format"]) == (1.0, 1.0, 0.0)


def test_a_completion_without_an_answer_is_wrong_and_unanswered(rewards, chain_sum):
    [(reward, details)] = compute(rewards, chain_sum, chain_sum["answer"])
    assert reward == 0.0
    assert (details["acc"], details["solved"], details["answered"]) == (0.0, 0.0, 0.0)


def test_a_draft_in_thinking_that_is_never_closed_earns_nothing(rewards, chain_sum):
    draft = answered(chain_sum["answer"])
    [(_, opened_here)] = compute(rewards, chain_sum, f"<think>{draft}")
    [begun] = asyncio.run(rewards.compute(finished(draft), chain_sum, thinking_begun=True))
    for found in (opened_here, begun.details):
        assert (found["acc"], found["answered"]) == (0.0, 0.0)
    [closed] = asyncio.run(rewards.compute(finished(f"</think>{draft}"), chain_sum, thinking_begun=True))
    assert (closed.details["acc"], closed.answer) == (1.0, chain_sum["answer"])


def test_a_wrong_answer_counts_as_answered(rewards, chain_sum):
    [(_, details)] = compute(rewards, chain_sum, answered(int(chain_sum["answer"]) + 1))
    assert (details["solved"], details["answered"]) == (0.0, 1.0)


def test_partial_credit_does_not_count_as_solved(rewards):
    entry = entry_of("spell_backward")
    [(reward, details)] = compute(rewards, entry, answered(entry["answer"][:-1] + "?"))
    assert 0 < details["acc"] < 1
    assert details["solved"] == 0.0
    assert reward == details["acc"] + 0.5


def test_each_part_is_a_detail_before_weighting(rewards, chain_sum):
    [(_, details)] = compute(rewards, chain_sum, answered(chain_sum["answer"]))
    found = {name: value for name, value in details.items() if name.startswith("reward_")}
    assert found == {"reward_accuracy": 1.0, "reward_format": 1.0, "reward_length": 0.0}


def test_the_rewards_are_in_the_order_of_the_completions(rewards, chain_sum):
    right = int(chain_sum["answer"])
    answers = [right, right + 1] * 10
    scored = compute(rewards, chain_sum, *map(answered, answers), lengths=list(range(20)))
    assert [details["solved"] for _, details in scored] == [1.0, 0.0] * 10
    assert [details["response_length"] for _, details in scored] == list(range(20))


def test_all_completions_have_the_same_details_and_all_details_are_numbers(rewards, chain_sum):
    # verl needs this to build columns.
    scored = compute(rewards, chain_sum, answered(chain_sum["answer"]), "no answer", answered("not a number"))
    assert len({tuple(details) for _, details in scored}) == 1
    assert {type(value) for _, details in scored for value in details.values()} == {float}


def test_a_part_that_depends_on_length_gets_the_length_and_the_limit(rewards, chain_sum):
    texts = [answered(chain_sum["answer"])] * 2
    scored = compute(rewards, chain_sum, *texts, lengths=[MAX_TOKENS // 2, MAX_TOKENS])
    assert [reward for reward, _ in scored] == [1.5, 0.5]


def test_an_answer_that_takes_too_long_has_accuracy_0_and_is_counted():
    entry = entry_of("countdown")
    hanging = answered("exec('while True: pass')")
    with Scorer(num_workers=1, timeout_s=0.5) as scorer:
        [(reward, details)] = compute(GroupRewards(PARTS, scorer=scorer, max_tokens=MAX_TOKENS), entry, hanging)
    assert reward == 0.5
    assert [name for name, value in details.items() if name.startswith("num_") and value] == ["num_timeout"]


def test_an_answer_on_which_the_scorer_raises_is_counted_as_an_exception(rewards, chain_sum):
    broken = {**chain_sum, "answer": None}
    [(_, details)] = compute(rewards, broken, answered("3"))
    assert (details["acc"], details["num_exception"]) == (0.0, 1.0)


def test_two_groups_are_scored_at_the_same_time(rewards, chain_sum):
    other = entry_of("spell_backward")

    async def both() -> list[list[CompletionReward]]:
        groups = [(chain_sum, answered(chain_sum["answer"])), (other, answered(other["answer"]))]
        return await asyncio.gather(*(rewards.compute(finished(*[text] * 4), entry) for entry, text in groups))

    assert [[one.details["solved"] for one in group] for group in asyncio.run(both())] == [[1.0] * 4] * 2


def test_a_bug_in_a_part_is_raised(rewards, chain_sum, monkeypatch):
    monkeypatch.setitem(reward_parts._PARTS, "accuracy", lambda completion: float("nan"))
    with pytest.raises(ValueError, match="reward 'accuracy' returned nan"):
        compute(rewards, chain_sum, answered("3"))


@pytest.mark.parametrize("error", [*FAILURES, "exception: ZeroDivisionError", "too long: over 100000 characters"])
def test_a_scoring_failure_is_counted_under_its_kind(error):
    counts = failure_counts(Score(0.0, error=error))
    kind = error.split(":")[0].replace(" ", "_")
    assert [name for name, count in counts.items() if count == 1.0] == [f"num_{kind}"]
    assert sum(counts.values()) == 1.0


def test_a_scored_answer_does_not_count_as_a_failure():
    assert failure_counts(Score(0.25)) == {
        "num_timeout": 0.0,
        "num_memory": 0.0,
        "num_crash": 0.0,
        "num_exception": 0.0,
        "num_too_long": 0.0,
    }
