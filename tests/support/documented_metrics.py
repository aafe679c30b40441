"""The metrics that docs/run-folder.md explains."""

import itertools
import re
from collections.abc import Iterable

from rgtrain.paths import PROJECT_ROOT

_PAGE = PROJECT_ROOT / "docs" / "run-folder.md"
_PLACEHOLDERS = {"DATASET": r"\w+", "PART": r"\w+", "PHASE": r"\w+", "NAME": r"\w+", "N": r"\d+"}


def undocumented(names: Iterable[str]) -> set[str]:
    """Return the names of metrics that no row of the page's tables explains; `step` and `time` are in its text."""
    patterns = [re.compile(pattern) for pattern in _patterns()]
    return {name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)} - {"step", "time"}


def _patterns() -> Iterable[str]:
    for line in _PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        previous = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
            # `actor/a_gb`, `..._b_gb`: the second continues the first name's group.
            name = previous.rpartition("/")[0] + "/*" + name[3:] if name.startswith("...") else name
            previous = name
            for spelled in _alternatives(name):
                words = re.split(r"(\.\.\.|\*|[A-Z]+(?![a-z]))", spelled)
                yield "".join(
                    _PLACEHOLDERS.get(word, ".+" if word in ("...", "*") else re.escape(word)) for word in words
                )


def _alternatives(name: str) -> list[str]:
    """Expand `loss/{mean,max}` to its two names."""
    parts = re.split(r"\{([^}]*)\}", name)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(words) for words in itertools.product(*choices)]
