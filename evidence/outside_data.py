"""Write the problems of outside benchmarks as files of questions.

    python evidence/outside_data.py --gsm8k test.jsonl --math test.jsonl --bbh DIR

`--gsm8k` is grade_school_math/data/test.jsonl of the repository openai/grade-school-math, with `question` and `answer`.
`--math` is test.jsonl of HuggingFaceH4/MATH-500, with `problem` and `answer`. `--bbh` is the folder `bbh` of the
repository suzgunmirac/BIG-Bench-Hard. The files are written to evidence/outside, which is not committed.
evidence/evaluation/outside.yaml has their hashes.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.training_plan import EVIDENCE
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.evaluation.benchmark_data import read_bbh_file, read_lines
from rgtrain.files import write_atomically
from rgtrain.problems.scoring.verifiers import parse_number

FOLDER = EVIDENCE / "outside"
# The problems of GSM8K, of MATH, and of each of the 27 subtasks of Big-Bench Hard.
_MOST = 540
_MOST_OF_SUBTASK = 44
# Longer questions would not fit into a prompt with two worked examples.
_LONGEST = 700
_BEFORE_ANSWER = "####"
_ADVICE = "see --help for its source"
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d{1,9})\}\{(\d{1,9})\}")


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
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(FOLDER / f"{name}.jsonl", lines)
            print(f"{name}: {len(rows)} problems")


def gsm8k(path: Path) -> list[dict[str, str]]:
    """Return problems of GSM8K. The number behind the hash signs is the answer."""
    rows = read_lines(path, {"question": str, "answer": str}, advice=_ADVICE)
    if without := [row["answer"] for row in rows if _BEFORE_ANSWER not in row["answer"]]:
        raise ConfigError(f"{path} has the answer {without[0]!r:.60} without {_BEFORE_ANSWER!r}; {_ADVICE}")
    return _some(((row["question"], row["answer"].rpartition(_BEFORE_ANSWER)[2].strip()) for row in rows), most=_MOST)


def math(path: Path) -> list[dict[str, str]]:
    """Return problems of MATH whose answer is a number. Others would need a judge of LaTeX."""
    rows = read_lines(path, {"problem": str, "answer": str}, advice=_ADVICE)
    answers = [(row["problem"], _plain_fraction(row["answer"])) for row in rows]
    numeric = [pair for pair in answers if parse_number(pair[1]) is not None]
    if not numeric:
        raise ConfigError(f"{path} has no answer that is a number; {_ADVICE}")
    return _some(numeric, most=_MOST)


def big_bench_hard(folder: Path) -> list[dict[str, str]]:
    """Return problems of every subtask of Big-Bench Hard, with the name of the subtask."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigError(f"{folder} has no JSON files; give the folder `bbh` of suzgunmirac/BIG-Bench-Hard")
    return [
        row | {"subtask": path.stem}
        for path in files
        for row in _some(((each["input"], each["target"]) for each in read_bbh_file(path)), most=_MOST_OF_SUBTASK)
    ]


def _plain_fraction(answer: str) -> str:
    found = _FRACTION.fullmatch(answer)
    return f"{found[1]}{found[2]}/{found[3]}" if found else answer


def _some(rows: Iterable[tuple[str, str]], *, most: int) -> list[dict[str, str]]:
    """Return distinct short questions, chosen by their hash, so that the order of the file does not matter."""
    answers = {question: answer for question, answer in rows if len(question) <= _LONGEST}
    chosen = sorted(answers, key=lambda question: hashlib.sha256(question.encode()).digest())[:most]
    return [{"question": question, "answer": answers[question]} for question in chosen]


if __name__ == "__main__":
    main()
