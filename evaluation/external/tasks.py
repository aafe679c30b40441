"""Functions for this folder's task files of lm-evaluation-harness, which load data and judge answers."""

import logging
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from rgtrain.problems.answers import extract_answer

# Longer answers are not judged: parsing LaTeX is not linear in its length. math-verify ends parsing and comparing
# after 5 s each.
_MAX_CHARS = 1_000

Document = Mapping[str, Any]


def load(*, name: str, path: str, config: str | Sequence[str] = "", data_dir: str | None = None, **_: Any) -> Any:
    """The test split of the hub's data set `path`, or of `data_dir`/NAME.jsonl; several configs are joined."""
    from datasets import DatasetDict, concatenate_datasets, load_dataset

    if data_dir:
        return load_dataset("json", data_files={"test": str(Path(data_dir) / f"{name}.jsonl")})
    configs = [config] if isinstance(config, str) else config
    parts = [load_dataset(path, one or None, split="test") for one in configs]
    return DatasetDict({"test": concatenate_datasets(parts)})


def ask_mmlu_pro(document: Document) -> str:
    """The question with its options, a letter each."""
    options = zip(string.ascii_uppercase, document["options"], strict=False)
    lines = [document["question"], "", *(f"{letter}. {option}" for letter, option in options)]
    return "\n".join([*lines, "", "Answer with the letter of the right option."])


def judge_gsm8k(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Right if both are the same number; separators, a dollar sign and a full stop don't count."""
    wanted = _number(document["answer"].split("####")[-1])
    return _judge(completions[0], lambda answer: _number(answer) == wanted is not None)


def judge_mmlu_pro(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Return whether the answer is the letter, alone or followed by text, as in "(C)" or "C. 7"."""
    return _judge(completions[0], lambda answer: _letter(answer) == document["answer"])


def judge_math(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Right if math-verify finds the answer equal to the boxed part of the solution."""
    from math_verify import verify

    wanted = _parsed(document["solution"])
    return _judge(completions[0], lambda answer: verify(wanted, _parsed(f"\\boxed{{{answer}}}")))


def _judge(completion: str, is_right: Callable[[str], bool]) -> dict[str, float]:
    answer = extract_answer(completion)
    judged = answer is not None and len(answer) <= _MAX_CHARS
    return {"accuracy": float(judged and is_right(answer)), "has_answer": float(answer is not None)}


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Its warnings repeat the model's text, whose escape sequences could steer the terminal.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # By default, math-verify also extracts plain expressions, and sympy would then evaluate the model's text.
    return parse(text, extraction_config=[LatexExtractionConfig(boxed_match_priority=0)])


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip().strip("$").rstrip(".").replace(",", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _letter(answer: str) -> str | None:
    letter = answer.strip().lstrip("(")[:1].upper()
    follows = answer.strip().lstrip("(")[1:2]
    return letter if letter and not follows.isalnum() else None
