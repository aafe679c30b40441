"""Write the right answer of every evaluated problem of the categories: python evidence/right_answers.py.

Records have no answers. From evidence/results/right_answers.json, the tables show whether an arm solves problems or
gives the same answer to all of them. Making the file takes a few seconds and no GPU.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.records import DIGEST_DIGITS
from evidence.training_plan import RESULTS, read_programme
from rgtrain.files import write_atomically

PATH = RESULTS / "right_answers.json"


def main() -> None:
    """Run the command."""
    programme = read_programme()
    answers: dict[str, dict[str, str]] = {}
    for category in programme.categories:
        answers |= answers_of_file(programme.evaluation_file(category))
    write_atomically(PATH, json.dumps(answers, indent=1, ensure_ascii=False) + "\n")


def answers_of_file(path: Path) -> dict[str, dict[str, str]]:
    """Return the right answer of each problem of an evaluation file, by dataset and by the digest in records."""
    from rgtrain.problems.evaluation_set import load_evaluation_problems

    answers: dict[str, dict[str, str]] = {}
    for problem in load_evaluation_problems(path):
        of_dataset = answers.setdefault(problem.dataset, {})
        of_dataset[problem.digest[:DIGEST_DIGITS]] = str(problem.entry["answer"])
    return answers


@cache
def right_answers() -> Mapping[str, Mapping[str, str]]:
    """Return the content of the file, by dataset and digest."""
    return json.loads(PATH.read_text(encoding="utf-8"))


def most_frequent_share(dataset: str) -> float:
    """Return the share of a dataset's problems that have its most frequent right answer."""
    answers = right_answers()[dataset]
    return Counter(answers.values()).most_common(1)[0][1] / len(answers)


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
