"""The findings of an audit, and their files."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.files import write_atomically


@dataclass(frozen=True)
class DatasetAudit:
    """The findings about one dataset with its default parameters.

    Shares and scores are in [0, 1]. A value is None if there was no item or answer to measure it on.
    """

    dataset: str
    # Items made within the time limit, the error that stopped the generator, and CPU seconds per item.
    num_items: int
    making_error: str | None
    seconds_to_make_median: float | None
    seconds_to_make_p99: float | None
    # Items that another process made as well, and how many of them differ.
    num_made_again: int
    num_other_under_same_hash_seed: int
    num_other_under_other_hash_seed: int
    prompt_tokens_median: int | None
    prompt_tokens_p90: int | None
    prompt_tokens_max: int | None
    has_curriculum: bool
    # Items with a right answer in the entry, and the number of these answers that score 1.
    num_oracles: int
    num_oracles_right: int
    # Items that pay 0.5 or more for junk.
    num_junk_paid: int
    # Judged answers without the hostile ones, their errors, and the errors of the hostile ones.
    num_judged: int
    errors: Mapping[str, int]
    hostile_errors: Mapping[str, int]
    seconds_to_score_median: float | None
    seconds_to_score_p99: float | None
    # Number of constants that were tried. The best one has the highest mean score over all items.
    num_constants: int
    best_constant: str
    best_constant_score: float
    best_constant_num_items: int
    best_constant_share_right: float | None


@dataclass(frozen=True)
class Audit:
    """An audit and everything needed to repeat it. `versions` are those of distributions and of Python."""

    command: str
    versions: Mapping[str, str]
    seeds: Sequence[int]
    num_items: int
    budget_s: float
    prompts: str
    seconds: float
    datasets: Mapping[str, DatasetAudit]


def write_audit(audit: Audit, folder: Path) -> None:
    """Write `audit` to `folder` atomically, as audit.json and as audit.csv with one line per dataset."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [field.name for field in dataclasses.fields(DatasetAudit)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_as_row(found) for found in audit.datasets.values())
    write_atomically(folder / "audit.csv", lines.getvalue())
    # An answer may have lone surrogates, which are written as JSON escapes.
    write_atomically(folder / "audit.json", json.dumps(dataclasses.asdict(audit), indent=1, ensure_ascii=False) + "\n")


def read_audit(folder: Path) -> Audit:
    """Read the audit that `write_audit` wrote to `folder`."""
    raw = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return Audit(**raw | {"datasets": {name: DatasetAudit(**found) for name, found in raw["datasets"].items()}})


def format_counts(errors: Mapping[str, int]) -> str:
    """Format errors and their counts in one line.

    Args:
        errors: Counts by error.

    Returns:
        Errors and counts, separated by commas.

    >>> format_counts(dict(timeout=2, memory=1))
    'timeout 2, memory 1'
    """
    return ", ".join(f"{error} {count}" for error, count in errors.items())


def _as_row(found: DatasetAudit) -> dict[str, Any]:
    return {
        name: format_counts(value) if isinstance(value, Mapping) else value
        for name, value in dataclasses.asdict(found).items()
    }
