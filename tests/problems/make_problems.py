"""Problems of every dataset, made in a process of its own: `python make_problems.py forward|backward OUT`.

Backward makes them in the opposite order, with problems of other seeds and parameters between them.
"""

import pickle
import sys
from pathlib import Path

from reasoning_gym.factory import DATASETS

from rgtrain.problems import DatasetSpec, Problem
from rgtrain.problems.mixture import MAX_SPLIT_SIZE, ProblemSource, Split

NAMES = sorted(set(DATASETS) - {"composite"})
# Up to three seconds a problem.
SLOW = ("futoshiki", "knight_swap", "sokoban")
# These draw from global generators, so their order of access once mattered.
ORDER_MATTERED = ("codeio", "list_functions")


def indices_of(name: str) -> list[int]:
    if name in SLOW:
        return [0, MAX_SPLIT_SIZE - 1]
    return [*range(30 if name in ORDER_MATTERED else 2), MAX_SPLIT_SIZE - 1]


def make(name: str, *, backward: bool) -> list[Problem]:
    source = ProblemSource(DatasetSpec(name), seed=Split.TRAIN.base_seed(0))
    indices = indices_of(name)
    if not backward:
        return [source[index] for index in indices]
    other = ProblemSource(DatasetSpec(name, params={"difficulty": 6} if name == "codeio" else {}), seed=5, size=100)
    problems = []
    for index in reversed(indices):
        if name not in SLOW:
            other[3]
        problems.append(source[index])
    return problems[::-1]


def main(order: str, out: str) -> None:
    backward = order == "backward"
    names = NAMES[::-1] if backward else NAMES
    problems = {name: make(name, backward=backward) for name in names}
    Path(out).write_bytes(pickle.dumps(problems))


if __name__ == "__main__":
    main(*sys.argv[1:])
