"""A verifier of a file of questions. A mixture names it as `verifier: pkg://my_tasks.verifiers.same_city`."""

from collections.abc import Mapping
from typing import Any


def same_city(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for the expected city, half for one with the right first letter, else 0.

    It runs in the sandbox, which allows no further imports, so import everything at the top of the file.

    Args:
        answer: The model's answer, which is untrusted text.
        entry: `question`, `answer`, and `metadata` with the further keys of the row.

    Returns:
        The score, in [0, 1].
    """
    given, expected = answer.strip().casefold(), entry["answer"].casefold()
    if given == expected:
        return 1.0
    return 0.5 if given[:1] == expected[:1] else 0.0


# As in coins.py.
same_city.executes_answers = False
