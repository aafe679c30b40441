"""What a person sees of a run, and `metrics.jsonl`: one more backend of verl's tracking."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rgtrain.checkpoints.metrics_file import lines_with_records
from rgtrain.files import flush, write_whole
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.training_activity import PHASES


class MetricsFile:
    """Appends one JSON line per step: {"step": 3, "time": ..., metric: number, ...}."""

    def __init__(self, path: Path, *, first_step: int):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._forget_from(first_step)

    def _forget_from(self, step: int) -> None:
        """Drop the steps that an interrupted run wrote after its last checkpoint, and move damaged lines away."""
        if not self._path.exists():
            return
        kept: list[bytes] = []
        damaged: list[tuple[int, bytes]] = []
        for number, (line, record) in enumerate(lines_with_records(self._path), start=1):
            if record is None:
                damaged.append((number, line))
            elif record["step"] < step:
                kept.append(line)
        if damaged:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            with aside.open("ab") as file:
                file.writelines(line for _, line in damaged)
            flush(aside)
            lines = "1 damaged line" if len(damaged) == 1 else f"{len(damaged)} damaged lines"
            announce(f"moved {lines} of {self._path.name} (first: line {damaged[0][0]}) to {aside.name}")
        write_whole(self._path, kept)

    def write(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Append the line of one step."""
        with self._path.open("a") as file:
            file.write(metrics_line(metrics, step=step))


def metrics_line(metrics: Mapping[str, Any], *, step: int) -> str:
    """The line of one step. Infinity, not-a-number and values that are no numbers become null."""
    numbers = {name: _as_number(value) for name, value in metrics.items()}
    return json.dumps({"step": step, "time": time.time(), **numbers}) + "\n"


class TrainingProgress:
    """A tracking backend: writes metrics.jsonl and announces one line per step."""

    def __init__(self, metrics_file: MetricsFile, *, num_steps: int, unlogged: Mapping[str, Any] | None = None):
        """`unlogged` is the record of a step that an earlier start did not log. Its validation is added to it."""
        self._metrics_file = metrics_file
        self._num_steps = num_steps
        self._unlogged = unlogged
        self._step_seconds: list[float] = []

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Record the metrics of one step; step 0 is the validation before training."""
        if self._unlogged and self._unlogged["step"] == step:
            unlogged = {name: math.nan if value is None else value for name, value in self._unlogged.items()}
            data = {**unlogged, **data}
        self._metrics_file.write(data, step=step)
        if "timing_s/step" in data:
            self._step_seconds.append(float(data["timing_s/step"]))
            announce(step_line(data, step=step, num_steps=self._num_steps, seconds_left=self._seconds_left(step)))
        validation = validation_line(data)
        if validation:
            announce(f"{'before training' if step == 0 else f'step {step}'}: validation {validation}")

    def finish(self) -> None:
        """Nothing is buffered."""

    def _seconds_left(self, step: int) -> float:
        # The median, because the first step waits for everything that is still starting.
        return median(self._step_seconds[-10:]) * (self._num_steps - step)


def step_line(data: Mapping[str, Any], *, step: int, num_steps: int, seconds_left: float) -> str:
    """One line for one training step: rewards, accuracy by dataset, length, seconds by phase, time left."""
    width = len(str(num_steps))
    parts = [f"step {step:>{width}}/{num_steps}", f"reward {float(data['critic/rewards/mean']):.3f}"]
    parts += [
        f"{name} {value:.2f}{_curriculum_suffix(data, name)}" for name, value in _by_dataset(data, "train/", "/acc")
    ]
    parts.append(f"length {float(data['response_length/mean']):.0f}")
    phases = [f"{label} {float(data[f'timing_s/{key}']):.1f}" for key, label in PHASES.items() if _took(data, key)]
    parts.append(f"{float(data['timing_s/step']):.1f} s ({', '.join(phases)})")
    parts.append(f"{_duration(seconds_left)} left")
    return " | ".join(parts)


def _curriculum_suffix(data: Mapping[str, Any], dataset: str) -> str:
    """Of a dataset with a curriculum: its level, the step's success at each level, the share of groups all alike."""
    at_level = f"curriculum/{dataset}/success_at_level_"
    success = [f"{key[len(at_level) :]}: {float(value):.2f}" for key, value in data.items() if key.startswith(at_level)]
    if not success:
        return ""
    level = data.get(f"curriculum/{dataset}/level")
    parts = [] if level is None else [f"level {level:g}"]
    parts += [", ".join(success), f"no signal {data[f'train/{dataset}/zero_signal']:.2f}"]
    return f" ({'; '.join(parts)})"


def validation_line(data: Mapping[str, Any]) -> str:
    """Validation accuracy by dataset, empty where `data` has none."""
    return ", ".join(f"{name} {value:.3f}" for name, value in _by_dataset(data, "val-core/", "/acc/mean@"))


def _by_dataset(data: Mapping[str, Any], prefix: str, suffix: str) -> list[tuple[str, float]]:
    found = []
    for key, value in sorted(data.items()):
        if key.startswith(prefix) and suffix in key and key.count("/") == 1 + suffix.count("/"):
            found.append((key[len(prefix) :].split("/")[0], float(value)))
    return found


def _took(data: Mapping[str, Any], phase: str) -> bool:
    return float(data.get(f"timing_s/{phase}", 0)) >= 0.05


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _as_number(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return number
