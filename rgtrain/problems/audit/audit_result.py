"""What an audit found, as values and as files."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.files import write_whole


@dataclass(frozen=True)
class DatasetAudit:
    """What was found about one dataset with its default parameters. Shares and scores are in [0, 1].

    Numbers of items and answers say over how many the others are; a value is None where there was nothing to measure.
    """

    dataset: str
    # Items made within the time allowed, what ended the making before that, and CPU seconds an item.
    num_items: int
    making_error: str | None
    seconds_to_make_median: float | None
    seconds_to_make_p99: float | None
    # Of the items that another process made too.
    num_made_again: int
    num_other_under_same_hash_seed: int
    num_other_under_other_hash_seed: int
    prompt_tokens_median: int | None
    prompt_tokens_p90: int | None
    prompt_tokens_max: int | None
    has_curriculum: bool
    # Items with a right answer in the entry, and how many of these answers score 1.
    num_oracles: int
    num_oracles_right: int
    # Items that pay 0.5 or more for junk.
    num_junk_paid: int
    # Answers judged, hostile ones apart, and the errors among them; the errors of the hostile ones.
    num_judged: int
    errors: Mapping[str, int]
    hostile_errors: Mapping[str, int]
    seconds_to_score_median: float | None
    seconds_to_score_p99: float | None
    # Constants tried; the one that earns most when given to every item, its mean score, and how often it is right.
    num_constants: int
    best_constant: str
    best_constant_score: float
    best_constant_num_items: int
    best_constant_share_right: float | None


@dataclass(frozen=True)
class Audit:
    """An audit and all that is needed to make it again. `versions` are of distributions and of Python."""

    command: str
    versions: Mapping[str, str]
    seeds: Sequence[int]
    num_items: int
    budget_s: float
    prompts: str
    seconds: float
    datasets: Mapping[str, DatasetAudit]


def write_audit(audit: Audit, folder: Path) -> None:
    """Write `audit` into `folder` as audit.json and, a line a dataset, audit.csv; each replaced whole."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [field.name for field in dataclasses.fields(DatasetAudit)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_as_row(found) for found in audit.datasets.values())
    write_whole(folder / "audit.csv", lines.getvalue())
    # Lone surrogates, which an answer may hold, become the escapes that JSON has for them.
    write_whole(folder / "audit.json", json.dumps(dataclasses.asdict(audit), indent=1, ensure_ascii=False) + "\n")


def read_audit(folder: Path) -> Audit:
    """The audit that `write_audit` left in `folder`."""
    raw = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return Audit(**raw | {"datasets": {name: DatasetAudit(**found) for name, found in raw["datasets"].items()}})


def counted(errors: Mapping[str, int]) -> str:
    """Errors with their counts in one line.

    >>> counted({"timeout": 2, "exception: KeyError": 1})
    'timeout 2, exception: KeyError 1'
    """
    return ", ".join(f"{error} {count}" for error, count in errors.items())


def _as_row(found: DatasetAudit) -> dict[str, Any]:
    return {
        name: counted(value) if isinstance(value, Mapping) else value
        for name, value in dataclasses.asdict(found).items()
    }
