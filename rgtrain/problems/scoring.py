"""The one definition of "right": an answer judged by the scorer of the dataset its entry came from.

Scores are Reasoning Gym's own, but for None and blank answers: these always score 0 here, where it pays up to 0.05
and on rare problems 1.0.
"""

import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.mixture import DatasetSpec, create_dataset

# Scorers are not linear in their input, and no honest answer comes near this many characters.
MAX_ANSWER_CHARS = 20_000


@dataclass(frozen=True)
class Score:
    """How one answer was judged: accuracy in [0, 1], the reason where it could not be judged, seconds it took."""

    accuracy: float
    error: str | None = None
    seconds: float = 0.0


class Scorer:
    """Judges answers; used by the training reward and by evaluation alike. A context manager.

    An answer is untrusted text: an exception its scorer raises is that answer's own, named in `Score.error`. An entry
    that names no known dataset is a bug of ours, and raises.
    """

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def score(self, answer: str | None, entry: Mapping[str, Any]) -> Score:
        """Judge one answer to the problem of `entry`."""
        judge = _judge_of(entry)
        if answer is None or not answer.strip():
            return Score(0.0)
        if len(answer) > MAX_ANSWER_CHARS:
            return Score(0.0, error=f"answer over {MAX_ANSWER_CHARS} characters")
        started = time.perf_counter()
        try:
            accuracy, error = float(judge(answer, entry)), None
        except (Exception, SystemExit) as raised:
            accuracy, error = 0.0, f"exception: {type(raised).__name__}"
        return Score(accuracy, error, time.perf_counter() - started)

    def score_many(self, pairs: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[Score]:
        """Judge (answer, entry) pairs; scores come in input order."""
        return [self.score(answer, entry) for answer, entry in pairs]


def _judge_of(entry: Mapping[str, Any]) -> Any:
    metadata = entry["metadata"]
    params = dump_entry(dict(metadata.get("source_params", {})))
    return _dataset(metadata["source_dataset"], params).score_answer


@functools.lru_cache(maxsize=256)
def _dataset(name: str, params: str) -> Any:
    return create_dataset(DatasetSpec(name, params=load_entry(params)), seed=0, size=1)
