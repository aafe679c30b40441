"""The table of a sweep: the last metrics of each job, with mean and standard deviation over the seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from rgtrain.checkpoints.metrics_file import METRICS, read_metrics, validation_score
from rgtrain.files import write_atomically
from rgtrain.reporting.run_reader import is_number
from rgtrain.tables import printed_table

FINISHED, FAILED, STOPPED, NOT_STARTED = "finished", "failed", "stopped", "not started"
# The formats of the metrics' values, by column.
_FORMATS = {
    "steps": ".0f",
    "reward": ".3f",
    "accuracy": ".3f",
    "length": ".1f",
    "s/step": ".2f",
    "validation before": ".3f",
    "validation after": ".3f",
}


@dataclass
class SweepJob:
    """A job of a sweep and its outcome.

    Attributes:
        name: The name of its folder.
        values: The values that differ between the jobs, by key.
        run_dir: The folder of its run.
        state: One of the states of this module.
        exit_code: The exit code, or None if the job has not ended.
        metrics: Values by column, from the metrics of its run.
    """

    name: str
    values: Mapping[str, str]
    run_dir: Path
    state: str = NOT_STARTED
    exit_code: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def read(self) -> None:
        """Read the metrics of the run so far. The reward, accuracy and length are those of the last step."""
        records, _ = read_metrics(self.run_dir / METRICS)
        steps = [record for record in records if is_number(record.get("timing_s/step"))]
        self.metrics = _of_training(steps) if steps else {}
        scores = [(record["step"], score[0]) for record in records if (score := validation_score(record))]
        if scores and scores[0][0] == 0:
            self.metrics["validation before"] = scores[0][1]
        if scores and scores[-1][0] > 0:
            self.metrics["validation after"] = scores[-1][1]


@dataclass(frozen=True)
class SeedGroup:
    """Jobs that finished and differ only in their seeds, with the mean and standard deviation of each metric."""

    values: Mapping[str, str]
    num_jobs: int
    mean: Mapping[str, float]
    standard_deviation: Mapping[str, float]


def seed_groups(jobs: Sequence[SweepJob]) -> list[SeedGroup]:
    """Return the groups of two or more finished jobs that differ only in keys that end in `seed`."""
    members: dict[tuple[tuple[str, str], ...], list[SweepJob]] = {}
    for job in jobs:
        if job.state == FINISHED:
            others = tuple((key, value) for key, value in job.values.items() if not key.endswith("seed"))
            members.setdefault(others, []).append(job)
    return [_group(dict(values), group) for values, group in members.items() if len(group) > 1]


def as_text(jobs: Sequence[SweepJob]) -> str:
    """Return the table for a terminal."""
    header, rows = _cells(jobs)
    return printed_table(header, rows, num_left=len(header) - len(_columns(jobs)))


def as_markdown(jobs: Sequence[SweepJob]) -> str:
    """Return the table in Markdown."""
    header, rows = _cells(jobs)
    rules = ["---"] * len(header)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, rules, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def write_tables(folder: Path, jobs: Sequence[SweepJob], *, command: str) -> None:
    """Write `sweep.json` and `sweep.md` into `folder`, which is created if necessary.

    Args:
        folder: The sweep's folder.
        jobs: All jobs of the sweep.
        command: The command line of the sweep, without secrets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "jobs": [vars(job) | {"run_dir": str(job.run_dir)} for job in jobs],
        "seed_groups": [vars(group) for group in seed_groups(jobs)],
    }
    write_atomically(folder / "sweep.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / "sweep.md", f"{as_markdown(jobs)}\n\n`{command}`\n")


def _of_training(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = steps[-1]
    accuracies = [value for key, value in last.items() if key.startswith("train/") and key.endswith("/acc")]
    found = {
        "steps": last["step"],
        "reward": last.get("critic/rewards/mean"),
        "accuracy": fmean(accuracies) if accuracies and all(map(is_number, accuracies)) else None,
        "length": last.get("response_length/mean"),
        "s/step": median(step["timing_s/step"] for step in steps),
    }
    return {name: value for name, value in found.items() if is_number(value)}


def _group(values: Mapping[str, str], jobs: Sequence[SweepJob]) -> SeedGroup:
    shared = [name for name in _FORMATS if all(name in job.metrics for job in jobs)]
    measured = {name: [job.metrics[name] for job in jobs] for name in shared}
    means = {name: fmean(numbers) for name, numbers in measured.items()}
    return SeedGroup(values, len(jobs), means, {name: stdev(numbers) for name, numbers in measured.items()})


def _columns(jobs: Sequence[SweepJob]) -> list[str]:
    return [name for name in _FORMATS if any(name in job.metrics for job in jobs)]


def _cells(jobs: Sequence[SweepJob]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, those of the jobs first."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.values))
    columns = _columns(jobs)
    rows = []
    for job in jobs:
        state = f"{FAILED} ({job.exit_code})" if job.state == FAILED else job.state
        numbers = [f"{job.metrics[name]:{_FORMATS[name]}}" if name in job.metrics else "" for name in columns]
        rows.append([*(job.values.get(key, "") for key in keys), state, *numbers])
    for group in seed_groups(jobs):
        numbers = [
            f"{group.mean[name]:{_FORMATS[name]}} ± {group.standard_deviation[name]:{_FORMATS[name]}}"
            if name in group.mean
            else ""
            for name in columns
        ]
        rows.append([*(group.values.get(key, "") for key in keys), f"mean ± sd of {group.num_jobs}", *numbers])
    return [*keys, "state", *columns], rows
