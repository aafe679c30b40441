"""Read a run's `metrics.jsonl`, which holds one JSON object per step, and skip damaged lines."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

METRICS = "metrics.jsonl"
# A checkpoint's copy of the line of its step.
STEP_METRICS = "step_metrics.json"
# The name of a dataset in the name of a metric. It may have a slash, as in `train/sound/coin_flip/acc`.
DATASET_IN_METRIC = r"[^/]++(?:/[^/]++)?"
# verl's name of the mean accuracy over all n answers to a validation problem. The groups are the dataset and n.
VALIDATION_ACCURACY = re.compile(rf"val-core/({DATASET_IN_METRIC})/acc/mean@(\d++)")
# A line of a run on all datasets has about 100 KB. A line longer than this is damaged and not read into memory.
_MAX_LINE_BYTES = 16 << 20


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the records of all valid lines, in file order.

    A valid line is a JSON object in UTF-8 with a whole number of at least 0 as its `step`. All others are damaged. A
    last line without a line break was cut short when the run ended. It is skipped and not counted.

    Args:
        path: The `metrics.jsonl` of a run. If it does not exist, there are no records.

    Returns:
        The records, and the number of damaged lines.
    """
    records = [record for _, record in lines_with_records(path)]
    sound = [record for record in records if record is not None]
    return sound, len(records) - len(sound)


def lines_with_records(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Read the complete lines of a file one at a time.

    Args:
        path: The `metrics.jsonl` of a run. If it does not exist, there are no lines.

    Yields:
        Each line (only its beginning if it is too long) and its record, which is None if the line is damaged.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            if line.endswith(b"\n"):
                yield line, _record(line)
                continue
            beginning = line
            while line and not line.endswith(b"\n"):
                line = file.readline(_MAX_LINE_BYTES)
            if line:
                yield beginning + b"\n", None


def unlogged_record(path: Path, checkpoint: Path) -> dict[str, Any] | None:
    """Return the metrics stored in `checkpoint` if the run ended before writing them to `path`, else None."""
    try:
        record = _record((checkpoint / STEP_METRICS).read_bytes())
    except OSError:
        return None
    if record is None or record["step"] in {logged["step"] for logged in read_metrics(path)[0]}:
        return None
    return record


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode())
    # Brackets nested too deeply raise RecursionError.
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    is_sound = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    return record if is_sound else None


def validation_score(metrics: Mapping[str, Any]) -> tuple[float, str] | None:
    """Compute the score that selects the best step: the mean over datasets of `val-core/DATASET/acc/mean@n`.

    Args:
        metrics: The metrics of one step by name.

    Returns:
        The score and the name of the metric, or None if `metrics` has no validation or a value is not a number.
    """
    found = {name: match for name in metrics if (match := VALIDATION_ACCURACY.fullmatch(name))}
    if not found or not all(isinstance(metrics[name], int | float) for name in found):
        return None
    try:
        score = fmean(metrics[name] for name in found)
    except OverflowError:
        return None
    num_samples = max(int(match[2]) for match in found.values())
    return (score, f"val-core/*/acc/mean@{num_samples}") if math.isfinite(score) else None
