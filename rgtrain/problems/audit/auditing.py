"""Measures datasets: makes items in other processes, and judges right answers, junk and constants with the Scorer."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

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
            problems = [item.problem for item in made[name].items]
            found[name] = DatasetAudit(
                dataset=name,
                has_curriculum=name in CURRICULA,
                **_making(made[name]),
                **_repeating(made[name], again=again[name], otherwise=otherwise[name]),
                **_prompts([count_tokens(problem) for problem in problems]),
                **_judging([problem.entry for problem in problems], scorer),
            )
            on_step(name)
    return found


def _making(made: MadeItems) -> dict[str, Any]:
    seconds = [item.seconds for item in made.items]
    return {
        "num_items": len(made.items),
        "making_error": made.error,
        "seconds_to_make_median": _percentile(seconds, 50),
        "seconds_to_make_p99": _percentile(seconds, 99),
    }


def _repeating(made: MadeItems, *, again: MadeItems, otherwise: MadeItems) -> dict[str, int]:
    # The same order everywhere: a slower process made fewer of the same items.
    three = list(zip(made.items, again.items, otherwise.items, strict=False))
    return {
        "num_made_again": len(three),
        "num_other_under_same_hash_seed": sum(first.dumped != second.dumped for first, second, _ in three),
        "num_other_under_other_hash_seed": sum(first.dumped != third.dumped for first, _, third in three),
    }


def _prompts(num_tokens: Sequence[int]) -> dict[str, int | None]:
    return {
        f"prompt_tokens_{name}": _percentile(num_tokens, p) for name, p in (("median", 50), ("p90", 90), ("max", 100))
    }


def _judging(entries: Sequence[Entry], scorer: Scorer) -> dict[str, Any]:
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
    seconds = [score.seconds for score in scored]
    return {
        "num_oracles": len(oracles),
        "num_oracles_right": sum(score.accuracy >= 1 for score in oracles),
        "num_junk_paid": sum(any(score.accuracy >= 0.5 for score in of_item) for of_item in zip(*junk, strict=True)),
        "num_judged": len(scored),
        "errors": _errors(scored),
        "hostile_errors": _errors(hostile),
        "seconds_to_score_median": _percentile(seconds, 50),
        "seconds_to_score_p99": _percentile(seconds, 99),
        **best,
    }


def _best_constant(entries: Sequence[Entry], scores_of: Callable[..., list[Score]]) -> dict[str, Any]:
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
    return {
        "num_constants": num_tried,
        "best_constant": answer,
        "best_constant_score": score,
        "best_constant_num_items": len(others),
        "best_constant_share_right": statistics.fmean(oracle == right for oracle in oracles) if oracles else None,
    }


def _errors(scores: Iterable[Score]) -> dict[str, int]:
    return dict(Counter(score.error for score in scores if score.error).most_common())


def _percentile(values: Sequence[float], percent: int) -> Any:
    """The smallest value that `percent` of `values` don't exceed; None where there are none."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else None
