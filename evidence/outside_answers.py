"""The verifier of Big-Bench Hard in evidence/evaluation/outside.yaml. It runs in the sandbox."""

import re
from collections.abc import Mapping
from typing import Any

from rgtrain.problems.scoring.verifiers import VERIFIERS

_OPTION = re.compile(r"\([A-Z]\)")


def same_target(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for the letter of the right option, or for the target in upper or lower case, else 0.

    Args:
        answer: The answer of a model.
        entry: The problem. Its target is a letter in parentheses, or a text such as `True`, `12` or `] )`.

    Returns:
        0 or 1.
    """
    is_option = _OPTION.fullmatch(entry["answer"])
    return VERIFIERS["choice" if is_option else "ignore_case"].judge(answer, entry)


same_target.executes_answers = False
