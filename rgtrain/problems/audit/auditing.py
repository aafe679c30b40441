"""Measures datasets: makes items in other processes, and judges right answers, junk and constants with the Scorer."""

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

# How often `on_step` is called for a dataset: three processes make its items, then they are judged.
NUM_STEPS = 4
# Items whose right answers are tried on all others.
_MAX_DONORS = 25
# Every constant is tried on 4 items, the best 20 then on 16, the best 5 of these on all...
_ROUNDS = ((4, 20), (16, 5), (None, 1))
# ... unless a round takes longer than this.
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
    """What is found about each dataset over up to `num_items`, in turn from each of the training `seeds`.

    A slow dataset gives as many items as are made in `budget_s`. `count_tokens` is the length of a problem's prompt.
    `on_step` is told the dataset that came a step further, `NUM_STEPS` times each.
    """
    make = partial(make_items, names, seeds=seeds, num_items=num_items, budget_s=budget_s, on_step=on_step)
    # Alone, because its times are measured.
    made = make(hash_seed=0)
    with ThreadPoolExecutor() as threads:
        again, otherwise = threads.map(lambda hash_seed: make(hash_seed=hash_seed), (0, 1))
    found = {}
    with Scorer() as scorer:
        for name in names:
            found[name] = _audit_dataset(
                name,
                made[name],
                again=again[name],
                otherwise=otherwise[name],
                count_tokens=count_tokens,
                scorer=scorer,
            )
            on_step(name)
    return found


def _audit_dataset(
    name: str,
    made: MadeItems,
    *,
    again: MadeItems,
    otherwise: MadeItems,
    count_tokens: Callable[[Problem], int],
    scorer: Scorer,
) -> DatasetAudit:
    """Measure one dataset.

    Args:
        name: The dataset.
        made: Its items.
        again: The same items from another process with the same hash seed.
        otherwise: The same items from a process with another hash seed.
        count_tokens: Returns the length of a problem's prompt.
        scorer: Judges the answers.
    """
    entries = [item.problem.entry for item in made.items]
    seconds_to_make = [item.seconds for item in made.items]
    num_tokens = [count_tokens(item.problem) for item in made.items]
    # The same order everywhere: a slower process made fewer of the same items.
    three = list(zip(made.items, again.items, otherwise.items, strict=False))

    scored: list[Score] = []

    def scores_of(pairs: Iterable[tuple[str, Entry]]) -> list[Score]:
        scores = scorer.score_many(pairs)
        scored.extend(scores)
        return scores

    oracles = scores_of((entry["answer"], entry) for entry in entries if entry.get("answer") is not None)
    junk = [scores_of((text, entry) for entry in entries) for text in JUNK]
    best = _best_constant(entries, scores_of)
    # Apart from the others: it is no surprise when text made to break a scorer does, and takes its time.
    hostile = scorer.score_many((text, entry) for text in HOSTILE for entry in entries[:1])
    seconds_to_score = [score.seconds for score in scored]
    return DatasetAudit(
        dataset=name,
        num_items=len(made.items),
        making_error=made.error,
        seconds_to_make_median=_percentile(seconds_to_make, 50),
        seconds_to_make_p99=_percentile(seconds_to_make, 99),
        num_made_again=len(three),
        num_other_under_same_hash_seed=sum(first.dumped != second.dumped for first, second, _ in three),
        num_other_under_other_hash_seed=sum(first.dumped != third.dumped for first, _, third in three),
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
        mean_score: Its mean score on the items that no constant was taken from, in [0, 1].
        num_items: Number of these items.
        share_right: Share of them whose right answer is the constant, or None if no entry holds its answer.
        num_tried: Number of constants that were tried.
    """

    answer: str
    mean_score: float
    num_items: int
    share_right: float | None
    num_tried: int


def _best_constant(
    entries: Sequence[Entry], scores_of: Callable[[Iterable[tuple[str, Entry]]], list[Score]]
) -> _BestConstant:
    # An answer is right for the item it is taken from: it is tried on others.
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
