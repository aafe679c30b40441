"""The verifiers of evidence/evaluation/outside.yaml, which run in the sandbox.

They judge as `evaluation/run_external.py` does.
"""

from collections.abc import Mapping
from typing import Any

from rgtrain.evaluation import big_bench_hard
from rgtrain.evaluation.benchmark_judging import stated_number

# Longer answers are wrong.
_LONGEST = 1000


def same_number(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 if an answer states the number of the entry's answer, else 0."""
    number = stated_number(answer) if len(answer) <= _LONGEST else None
    return float(number is not None and number == stated_number(entry["answer"]))


def same_target(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 if an answer is right by the rule of the entry's subtask of Big-Bench Hard, else 0."""
    problem = {
        "subtask": entry["metadata"]["subtask"],
        "input": entry["question"],
        "target": entry["answer"],
    }
    return float(len(answer) <= _LONGEST and big_bench_hard.is_right(problem, answer))


same_number.executes_answers = False
same_target.executes_answers = False
