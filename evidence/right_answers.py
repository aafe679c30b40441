"""Write the right answer of every evaluated problem of the categories: python evidence/right_answers.py --model PATH.

Records have no answers. From evidence/results/right_answers.json, the tables show whether an arm solves problems or
gives the same answer to all of them. evidence/results/answer_tokens.json has the fewest tokens of a right answer for
each given model. Datasets whose answers are all too long for a model are left out of its comparisons. Making the files
takes a few seconds and no GPU.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.records import DIGEST_DIGITS
from evidence.training_plan import RESULTS, ModelPlan, read_programme
from rgtrain.files import write_atomically
from rgtrain.machine.environment import fix_hash_seed

PATH = RESULTS / "right_answers.json"
TOKENS = RESULTS / "answer_tokens.json"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python evidence/right_answers.py", description=__doc__)
    parser.add_argument("--model", action="append", type=Path, default=[], metavar="PATH", help="may be given twice")
    fix_hash_seed()
    arguments = parser.parse_args()
    programme = read_programme()
    answers: dict[str, dict[str, str]] = {}
    for category in programme.categories:
        answers |= answers_of_file(programme.evaluation_file(category))
    write_atomically(PATH, json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
    fewest = dict(fewest_tokens())
    for path in arguments.model:
        fewest[programme.model_of(path).name] = _fewest_tokens(path, answers)
    write_atomically(TOKENS, json.dumps(fewest, indent=1) + "\n")


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
