"""Write the right answers of categories and outside benchmarks: python evidence/right_answers.py --model PATH.

Records have no answers. From evidence/results/right_answers.json, the tables show whether an arm solves problems or
gives the same answer to all of them. evidence/results/answer_tokens.json has the fewest tokens of a right answer for
each given model. Datasets whose answers are all too long for a model are left out of its comparisons.
evidence/results/subtasks.json has the subtask of each problem of a benchmark that has subtasks, and
evidence/results/fixed_rules.json lists the problems that a fixed rule solves. Making the files takes a few seconds and
no GPU. The answers of outside benchmarks stay as they are if evidence/outside_data.py has not written their problems.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.records import DIGEST_DIGITS
from evidence.training_plan import OUTSIDE, RESULTS, ModelPlan, Programme, read_programme
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.files import write_atomically
from rgtrain.machine.environment import fix_hash_seed

if TYPE_CHECKING:
    from rgtrain.problems.mixture import Problem

_Value = TypeVar("_Value")
PATH = RESULTS / "right_answers.json"
TOKENS = RESULTS / "answer_tokens.json"
RULES = RESULTS / "fixed_rules.json"
SUBTASKS = RESULTS / "subtasks.json"


class FixedRule(NamedTuple):
    """A way to answer all problems of a dataset without solving them.

    Attributes:
        text: The rule.
        solves: Returns whether its answer to an entry of Reasoning Gym is right.
    """

    text: str
    solves: Callable[[Mapping[str, Any]], bool]


# Rules that trained models were found to follow.
FIXED_RULES = {
    "countdown": FixedRule(
        "add the numbers", lambda entry: sum(entry["metadata"]["numbers"]) == entry["metadata"]["target"]
    ),
    "number_sequence": FixedRule(
        "repeat the last number", lambda entry: entry["question"].split(", ")[-2] == entry["answer"]
    ),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python evidence/right_answers.py", description=__doc__)
    parser.add_argument("--model", action="append", type=Path, default=[], metavar="PATH", help="may be given twice")
    fix_hash_seed()
    arguments = parser.parse_args()
    with exit_on_config_error():
        for path, content in contents(read_programme(), models=arguments.model).items():
            write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def contents(programme: Programme, *, models: Sequence[Path]) -> dict[Path, Any]:
    """Return the content of each file. Raises ConfigError if answers of outside benchmarks are nowhere."""
    answers: dict[str, dict[str, str]] = {}
    by_rule: dict[str, dict[str, bool]] = {}
    for category in programme.categories:
        answers |= answers_of_file(programme.evaluation_file(category))
        by_rule |= solved_by_rules(programme.evaluation_file(category))
    fewest = dict(fewest_tokens()) | {programme.model_of(path).name: _fewest_tokens(path, answers) for path in models}
    found = {RULES: by_rule, TOKENS: fewest}
    if missing := programme.missing_question_files([OUTSIDE]):
        known = right_answers() if PATH.is_file() else {}
        if not set(programme.datasets(OUTSIDE)) <= set(known):
            raise ConfigError(f"{missing[0]} is missing; write it by evidence/outside_data.py, see its --help")
        return found | {PATH: answers | {name: known[name] for name in programme.datasets(OUTSIDE)}}
    file = programme.evaluation_file(OUTSIDE)
    return found | {PATH: answers | answers_of_file(file), SUBTASKS: subtasks_of_file(file)}


def _fewest_tokens(model: Path, answers: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Return the fewest tokens of a right answer of each dataset, with its tags and the end of the turn."""
    from tokenizers import Tokenizer

    from rgtrain.problems.prompts import worked_answer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return {
        dataset: 1
        + min(
            len(tokenizer.encode(worked_answer({"answer": answer}), add_special_tokens=False).ids)
            for answer in of_dataset.values()
        )
        for dataset, of_dataset in answers.items()
    }


@cache
def fewest_tokens() -> Mapping[str, Mapping[str, int]]:
    """Return the fewest tokens of a right answer, by model and dataset."""
    return json.loads(TOKENS.read_text(encoding="utf-8")) if TOKENS.is_file() else {}


def answerable(model: ModelPlan, datasets: Iterable[str]) -> list[str]:
    """Return the datasets of which the model can answer a problem within its length, or has not been measured."""
    fewest = fewest_tokens().get(model.name, {})
    return [dataset for dataset in datasets if fewest.get(dataset, 0) <= model.settings["data.max_response_length"]]


def answers_of_file(path: Path) -> dict[str, dict[str, str]]:
    """Return the right answer of each problem of an evaluation file, by dataset and by the digest in records."""
    return _by_problem(path, lambda problem: str(problem.entry["answer"]))


def subtasks_of_file(path: Path) -> dict[str, dict[str, str]]:
    """Return the subtask of each problem of an evaluation file that has one, by dataset and digest."""
    return _by_problem(path, lambda problem: problem.entry["metadata"].get("subtask"))


def solved_by_rules(path: Path) -> dict[str, dict[str, bool]]:
    """Return for the problems of an evaluation file whether a fixed rule solves them, by dataset and digest."""

    def is_solved(problem: "Problem") -> bool | None:
        rule = FIXED_RULES.get(problem.dataset)
        return rule.solves(problem.entry) if rule else None

    return _by_problem(path, is_solved)


def _by_problem(path: Path, value_of: "Callable[[Problem], _Value | None]") -> "dict[str, dict[str, _Value]]":
    """Return a value of each problem of an evaluation file, by dataset and digest. A value of None is left out."""
    values: dict[str, dict[str, _Value]] = defaultdict(dict)
    for problem in _problems(path):
        if (value := value_of(problem)) is not None:
            values[problem.dataset][problem.digest[:DIGEST_DIGITS]] = value
    return dict(values)


@cache
def _problems(path: Path) -> "Sequence[Problem]":
    from rgtrain.problems.evaluation_set import load_evaluation_problems

    return load_evaluation_problems(path)


@cache
def rule_solved() -> Mapping[str, Mapping[str, bool]]:
    """Return for problems of datasets with a fixed rule whether it solves them, by dataset and digest."""
    return json.loads(RULES.read_text(encoding="utf-8"))


@cache
def right_answers() -> Mapping[str, Mapping[str, str]]:
    """Return the content of the file, by dataset and digest."""
    return json.loads(PATH.read_text(encoding="utf-8"))


@cache
def all_subtasks() -> Mapping[str, Mapping[str, str]]:
    """Return the content of the file of subtasks, by dataset and digest."""
    return json.loads(SUBTASKS.read_text(encoding="utf-8"))


def most_frequent_share(dataset: str, *, by_subtask: bool = False) -> float:
    """Return the share of a dataset's problems that have its most frequent right answer, or that of their subtask."""
    answers = right_answers()[dataset]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for digest, answer in answers.items():
        counts[all_subtasks()[dataset][digest] if by_subtask else ""][answer] += 1
    return sum(max(of_subtask.values()) for of_subtask in counts.values()) / len(answers)


def same_answer_share(dataset: str, digests: Sequence[str], shares: Sequence[float]) -> float | None:
    """Return the largest share of right answers that are one and the same answer.

    Args:
        dataset: The dataset.
        digests: The digests of its distinct problems. The answer of an unknown problem is taken to be unique.
        shares: The share of right answers of a training to each problem.

    Returns:
        1 if everything that the training solves has the same answer. None if it solves nothing.
    """
    known = right_answers()[dataset]
    by_answer: dict[str, float] = defaultdict(float)
    for digest, share in zip(digests, shares, strict=True):
        by_answer[known.get(digest, digest)] += share
    total = sum(by_answer.values())
    return max(by_answer.values()) / total if total else None


if __name__ == "__main__":
    main()
