"""Measure datasets: make items in other processes, and judge right answers, junk and constants with the Scorer."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from reasoning_gym.factory import CURRICULA

from rgtrain.problems.audit.audit_result import DatasetAudit
from rgtrain.problems.audit.constants import HOSTILE, JUNK, constant_candidates, known_answer
from rgtrain.problems.audit.items import MadeItems, make_items
from rgtrain.problems.mixture import Problem
from rgtrain.problems.scoring import Score, Scorer

# Number of calls of `on_step` per dataset: its items are made in three processes and then judged.
NUM_STEPS = 4
# Number of items whose right answers are tried on all others.
_MAX_DONORS = 25
# Rounds of (number of items, number of best constants to keep). The last round uses all items.
_ROUNDS = ((4, 20), (16, 5), (None, 1))
# A round stops after this time.
_ROUND_S = 60.0

Entry = Mapping[str, Any]
_Number = TypeVar("_Number", int, float)


def audit_datasets(
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    num_items: int,
    budget_s: float,
    count_tokens: Callable[[Problem], int],
    on_step: Callable[[str], None],
) -> dict[str, DatasetAudit]:
    """Audit datasets with their default parameters.

    Args:
        names: The datasets.
        seeds: Training seeds. Items are made in turn from each of them.
        num_items: Maximum number of items per dataset.
        budget_s: Time limit in seconds for making the items of a dataset.
        count_tokens: Returns the length of the prompt of a problem.
        on_step: Called with the name of a dataset after each of its `NUM_STEPS` steps.

    Returns:
        The findings by dataset.
    """
    make = partial(make_items, names, seeds=seeds, num_items=num_items, budget_s=budget_s, on_step=on_step)
    # Run it alone, because its times are measured.
    made = make(hash_seed=0)
    with ThreadPoolExecutor() as threads:
        repeated, other_hash = threads.map(lambda hash_seed: make(hash_seed=hash_seed), (0, 1))
    found = {}
    with Scorer() as scorer:
        for name in names:
            found[name] = _audit_dataset(
                name,
                made[name],
                repeated=repeated[name],
                other_hash=other_hash[name],
                count_tokens=count_tokens,
                scorer=scorer,
            )
            on_step(name)
    return found


def _audit_dataset(
    name: str,
    made: MadeItems,
    *,
    repeated: MadeItems,
    other_hash: MadeItems,
    count_tokens: Callable[[Problem], int],
    scorer: Scorer,
) -> DatasetAudit:
    """Measure one dataset.

    Args:
        name: The dataset.
        made: Its items.
        repeated: The same items from another process with the same hash seed.
        other_hash: The same items from a process with another hash seed.
        count_tokens: Returns the length of a problem's prompt.
        scorer: Judges the answers.

    Returns:
        The findings.
    """
    entries = [item.problem.entry for item in made.items]
    seconds_to_make = [item.seconds for item in made.items]
    num_tokens = [count_tokens(item.problem) for item in made.items]
    # All processes make the same items in the same order, but a slower one may make fewer.
    triples = list(zip(made.items, repeated.items, other_hash.items, strict=False))

    scored: list[Score] = []

    def scores_of(pairs: Iterable[tuple[str, Entry]]) -> list[Score]:
        scores = scorer.score_many(pairs)
        scored.extend(scores)
        return scores

    oracles = scores_of((entry["answer"], entry) for entry in entries if entry.get("answer") is not None)
    junk = [scores_of((text, entry) for entry in entries) for text in JUNK]
    best = _find_best_constant(entries, scores_of)
    # Not part of `scored`, because errors and long times are expected for text that is made to break a scorer.
    hostile = scorer.score_many((text, entry) for text in HOSTILE for entry in entries[:1])
    seconds_to_score = [score.seconds for score in scored]
    return DatasetAudit(
        dataset=name,
        num_items=len(made.items),
        making_error=made.error,
        seconds_to_make_median=_percentile(seconds_to_make, 50),
        seconds_to_make_p99=_percentile(seconds_to_make, 99),
        num_made_again=len(triples),
        num_other_under_same_hash_seed=sum(first.dumped != second.dumped for first, second, _ in triples),
        num_other_under_other_hash_seed=sum(first.dumped != third.dumped for first, _, third in triples),
        prompt_tokens_median=_percentile(num_tokens, 50),
        prompt_tokens_p90=_percentile(num_tokens, 90),
        prompt_tokens_max=_percentile(num_tokens, 100),
        has_curriculum=name in CURRICULA,
        num_oracles=len(oracles),
        num_oracles_right=sum(score.accuracy >= 1 for score in oracles),
        num_junk_paid=sum(any(score.accuracy >= 0.5 for score in of_item) for of_item in zip(*junk, strict=True)),
        num_judged=len(scored),
        errors=_errors(scored),
        hostile_errors=_errors(hostile),
        seconds_to_score_median=_percentile(seconds_to_score, 50),
        seconds_to_score_p99=_percentile(seconds_to_score, 99),
        num_constants=best.num_tried,
        best_constant=best.answer,
        best_constant_score=best.mean_score,
        best_constant_num_items=best.num_items,
        best_constant_share_right=best.share_right,
    )


class _BestConstant(NamedTuple):
    """The constant answer with the highest mean score.

    Attributes:
        answer: The constant.
        mean_score: Its mean score, in [0, 1], on the items that no constant was taken from.
        num_items: Number of these items.
        share_right: Share of them whose right answer is the constant, or None if no entry holds its answer.
        num_tried: Number of constants that were tried.
    """

    answer: str
    mean_score: float
    num_items: int
    share_right: float | None
    num_tried: int


def _find_best_constant(
    entries: Sequence[Entry], scores_of: Callable[[Iterable[tuple[str, Entry]]], list[Score]]
) -> _BestConstant:
    # Try the answer of an item on other items only, because it is right for its own.
    num_donors = min(_MAX_DONORS, len(entries) // 4)
    donors, others = entries[:num_donors], entries[num_donors:]
    known = [answer for answer in map(known_answer, donors) if answer is not None]

    def ranked(answers: Sequence[str], *, on: Sequence[Entry]) -> list[tuple[str, float]]:
        deadline = time.monotonic() + _ROUND_S
        means = []
        for answer in answers:
            scores = scores_of((answer, entry) for entry in on)
            means.append((answer, statistics.fmean(score.accuracy for score in scores)))
            if time.monotonic() > deadline:
                break
        return sorted(means, key=lambda mean: -mean[1])

    best = [(answer, 0.0) for answer in constant_candidates(known)]
    num_tried = 0
    for num_items, num_left in _ROUNDS if others else ():
        means = ranked([answer for answer, _ in best], on=others[:num_items])
        num_tried = max(num_tried, len(means))
        best = means[:num_left]
    answer, score = best[0]
    oracles = [entry["answer"].casefold() for entry in others if entry.get("answer") is not None]
    right = answer.casefold()
    return _BestConstant(
        answer=answer,
        mean_score=score,
        num_items=len(others),
        share_right=statistics.fmean(oracle == right for oracle in oracles) if oracles else None,
        num_tried=num_tried,
    )


def _errors(scores: Iterable[Score]) -> dict[str, int]:
    return dict(Counter(score.error for score in scores if score.error).most_common())


def _percentile(values: Sequence[_Number], percent: int) -> _Number | None:
    """Return the smallest value that `percent` of `values` do not exceed, or None if there are no values."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else None
