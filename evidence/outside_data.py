"""Write the problems of outside benchmarks as files of questions.

    python evidence/outside_data.py --gsm8k test.jsonl --math test.jsonl --bbh DIR

`--gsm8k` is the test file of the repository openai/grade-school-math, with `question` and `answer`. `--math` is a test
file of MATH or MATH-500, with `problem` and `answer`. `--bbh` is the folder `bbh` of the repository
suzgunmirac/BIG-Bench-Hard. The files are written to evidence/outside, which is not committed.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.training_plan import EVIDENCE
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.files import write_atomically
from rgtrain.problems.scoring.verifiers import parse_number

FOLDER = EVIDENCE / "outside"
# The problems of GSM8K, of MATH, and of each of the 27 subtasks of Big-Bench Hard.
_MOST = 540
_MOST_OF_SUBTASK = 44
# Longer questions would not fit into a prompt with two worked examples.
_LONGEST = 700
_FRACTION = re.compile(r"\\d?frac\{(\d{1,9})\}\{(\d{1,9})\}")


class Row(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python evidence/outside_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gsm8k", type=Path, required=True, metavar="FILE")
    parser.add_argument("--math", type=Path, required=True, metavar="FILE")
    parser.add_argument("--bbh", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    with exit_on_config_error():
        benchmarks = {
            "gsm8k": gsm8k(arguments.gsm8k),
            "math": math(arguments.math),
            "bbh": big_bench_hard(arguments.bbh),
        }
        FOLDER.mkdir(exist_ok=True)
        for name, rows in benchmarks.items():
            lines = "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
            write_atomically(FOLDER / f"{name}.jsonl", lines)
            print(f"{name}: {len(rows)} problems")


def gsm8k(path: Path) -> list[Row]:
    """Return problems of GSM8K. The number behind the hash signs is the answer."""
    rows = [Row(each["question"], each["answer"].rpartition("####")[2].strip()) for each in _lines(path)]
    return _some(rows, most=_MOST)


def math(path: Path) -> list[Row]:
    """Return problems of MATH whose answer is a number. Others would need a judge of LaTeX."""
    rows = [Row(each["problem"], _FRACTION.sub(r"\1/\2", each["answer"])) for each in _lines(path)]
    return _some((row for row in rows if parse_number(row.answer) is not None), most=_MOST)


def big_bench_hard(folder: Path) -> list[Row]:
    """Return problems of every subtask of Big-Bench Hard."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigError(f"{folder} has no JSON files; give the folder `bbh` of suzgunmirac/BIG-Bench-Hard")
    found = []
    for path in files:
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
        found += _some((Row(each["input"], each["target"]) for each in examples), most=_MOST_OF_SUBTASK)
    return found


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} ({error}); give a file with one JSON object per line") from error


def _some(rows: Iterable[Row], *, most: int) -> list[Row]:
    """Return distinct short questions, chosen by their hash, so that the order of the file does not matter."""
    by_question = {row.question: row for row in rows if len(row.question) <= _LONGEST}
    chosen = sorted(by_question, key=lambda question: hashlib.sha256(question.encode()).digest())[:most]
    return [by_question[question] for question in chosen]


if __name__ == "__main__":
    main()
