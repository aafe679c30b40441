"""Functions for this folder's task files of lm-evaluation-harness, which load data and judge answers."""

import logging
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.evaluation import big_bench_hard
from rgtrain.evaluation.benchmark_data import load_problems
from rgtrain.evaluation.benchmark_judging import chosen_letter, plain_quantity, stated_expression, stated_number
from rgtrain.problems.answers import extract_answer

# Longer answers are not judged: parsing LaTeX is not linear in its length. math-verify ends parsing and comparing
# after 5 s each.
_MAX_CHARS = 1_000

Document = Mapping[str, Any]


def load(
    *,
    name: str,
    path: str,
    config: str | Sequence[str] | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
    **_: Any,
) -> Any:
    """The problems of the hub's data set `path`, or of a folder, as split "test"; several configs are joined."""
    from datasets import Dataset, DatasetDict

    folder = Path(data_dir) if data_dir else None
    configs = [config] if config is None or isinstance(config, str) else config
    problems = load_problems(name, hub=path, configs=configs, data_dir=folder, limit=limit)
    return DatasetDict({"test": Dataset.from_list(problems)})


def ask_bbh(document: Document) -> str:
    """The question with the form of the answer."""
    return big_bench_hard.asked(document)


def judge_bbh(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Return whether the answer is the target in the form that the subtask asks for."""
    return _judge(completions[0], lambda answer: big_bench_hard.is_right(document, answer))


def ask_mmlu_pro(document: Document) -> str:
    """The question with its options, a letter each."""
    options = zip(string.ascii_uppercase, document["options"], strict=False)
    lines = [document["question"], "", *(f"{letter}. {option}" for letter, option in options)]
    return "\n".join([*lines, "", "Answer with the letter of the right option."])


def judge_gsm8k(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Return whether the answer states the number of the solution."""
    wanted = stated_number(document["answer"].split("####")[-1])
    return _judge(completions[0], lambda answer: stated_number(answer) == wanted is not None)


def judge_mmlu_pro(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Return whether the answer names the right option by its letter."""
    options = document["options"]
    return _judge(completions[0], lambda answer: chosen_letter(answer, options) == document["answer"])


def judge_math(document: Document, completions: Sequence[str]) -> dict[str, float]:
    """Return whether the answer equals the boxed part of the solution, as a quantity or by math-verify."""
    from math_verify import verify

    wanted, quantity = _parsed(document["solution"]), plain_quantity(document["solution"])

    def is_right(answer: str) -> bool:
        return plain_quantity(answer) == quantity is not None or verify(
            wanted, _parsed(f"\\boxed{{{stated_expression(answer)}}}")
        )

    return _judge(completions[0], is_right)


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
