"""Write `metrics.jsonl` and the progress lines of a run, as a backend of verl's tracking."""

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rgtrain.checkpoints.metrics_file import DATASET_IN_METRIC, VALIDATION_ACCURACY, lines_with_records
from rgtrain.files import flush, write_atomically
from rgtrain.tables import duration_text
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.training_activity import PHASES

_DAY_SECONDS = 86400
# After so many steps of a start, the median step shows how long the run will take.
_STEPS_TO_JUDGE = 4
# The metrics and the report have all of them.
_MAX_DATASETS = 8
_TRAIN_ACCURACY = re.compile(rf"train/({DATASET_IN_METRIC})/acc")


class MetricsFile:
    """A file with one JSON line per step, such as `{"step": 3, "time": ..., "loss": 0.5}`.

    Opening it removes the lines of steps that the run will repeat, and moves damaged lines to another file.

    Args:
        path: The file. Its folder is created if necessary.
        first_step: The first step that this start of the run will write.
        last_step: The last one, if lines of later steps are to stay. By default, there are none to keep.
    """

    def __init__(self, path: Path, *, first_step: int, last_step: int | None = None):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._forget(first_step, last_step)

    def _forget(self, first_step: int, last_step: int | None) -> None:
        """Remove the lines from `first_step` to `last_step`, and move damaged lines to another file."""
        if not self._path.exists():
            return
        kept: list[bytes] = []
        damaged: list[tuple[int, bytes]] = []
        for number, (line, record) in enumerate(lines_with_records(self._path), start=1):
            if record is None:
                damaged.append((number, line))
            elif record["step"] < first_step or (last_step is not None and record["step"] > last_step):
                kept.append(line)
        if damaged:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            with aside.open("ab") as file:
                file.writelines(line for _, line in damaged)
            flush(aside)
            lines = "1 damaged line" if len(damaged) == 1 else f"{len(damaged)} damaged lines"
            announce(f"moved {lines} of {self._path.name} (first: line {damaged[0][0]}) to {aside.name}")
        write_atomically(self._path, kept)

    def write(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Append the line of one step."""
        with self._path.open("a") as file:
            file.write(metrics_line(metrics, step=step))


def metrics_line(metrics: Mapping[str, Any], *, step: int) -> str:
    """Return the line of one step. Infinity, NaN and values that are not numbers become null."""
    numbers = {name: _as_number(value) for name, value in metrics.items()}
    return json.dumps({"step": step, "time": time.time(), **numbers}) + "\n"


class TrainingProgress:
    """A backend of verl's tracking that writes metrics.jsonl and announces one line per step.

    Args:
        metrics_file: The file to write to.
        num_steps: The number of steps of the whole run.
        unlogged: The record of a step that an earlier start saved but did not log. It is merged with the repeated
            validation of that step.
        shows_steps: Whether to announce training steps. A validation alone repeats the line of its step in the file.
    """

    def __init__(
        self,
        metrics_file: MetricsFile,
        *,
        num_steps: int,
        unlogged: Mapping[str, Any] | None = None,
        shows_steps: bool = True,
    ):
        self._metrics_file = metrics_file
        self._num_steps = num_steps
        self._unlogged = unlogged
        self._shows_steps = shows_steps
        self._step_seconds: list[float] = []

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Record the metrics of one step. Step 0 is the validation before training."""
        if self._unlogged and self._unlogged["step"] == step:
            unlogged = {name: math.nan if value is None else value for name, value in self._unlogged.items()}
            data = {**unlogged, **data}
        self._metrics_file.write(data, step=step)
        if self._shows_steps and "timing_s/step" in data:
            self._step_seconds.append(float(data["timing_s/step"]))
            seconds_left = self._seconds_left(step)
            announce(step_line(data, step=step, num_steps=self._num_steps, seconds_left=seconds_left))
            if len(self._step_seconds) == _STEPS_TO_JUDGE and seconds_left > _DAY_SECONDS:
                announce(long_run_warning(seconds_left / (self._num_steps - step), step=step))
        validation = validation_line(data)
        if validation:
            announce(f"{'before training' if step == 0 else f'step {step}'}: validation accuracy: {validation}")

    def finish(self) -> None:
        """Do nothing, because nothing is buffered."""

    def _seconds_left(self, step: int) -> float:
        # The median, because the first step includes the rest of the start-up.
        return median(self._step_seconds[-10:]) * (self._num_steps - step)


def step_line(data: Mapping[str, Any], *, step: int, num_steps: int, seconds_left: float) -> str:
    """Return the progress line of a training step.

    Args:
        data: The metrics of the step.
        step: The number of the step.
        num_steps: The number of steps of the whole run.
        seconds_left: The estimated time until the end of the run.

    Returns:
        The mean reward, accuracy by dataset (0 to 1), mean tokens per response, seconds of the step and of its phases,
        and the time left.
    """
    width = len(str(num_steps))
    parts = [f"step {step:>{width}}/{num_steps}", f"reward {float(data['critic/rewards/mean']):.3f}"]
    accuracies = _by_dataset(data, _TRAIN_ACCURACY)
    if accuracies:
        shown = [f"{name} {value:.2f}{_curriculum_suffix(data, name)}" for name, value in accuracies[:_MAX_DATASETS]]
        mean = fmean(value for _, value in accuracies)
        more = len(accuracies) - _MAX_DATASETS
        parts.append(f"accuracy: {', '.join(shown)}{f' and {more} more, mean {mean:.2f}' if more > 0 else ''}")
    parts.append(f"{float(data['response_length/mean']):.0f} tokens/response")
    phases = [f"{label} {float(data[f'timing_s/{key}']):.1f}" for key, label in PHASES.items() if _is_shown(data, key)]
    parts.append(f"{float(data['timing_s/step']):.1f} s ({', '.join(phases)})")
    parts.append(f"{_duration(seconds_left)} left")
    return " | ".join(parts)


def long_run_warning(step_seconds: float, *, step: int) -> str:
    """Return the warning that more than a day is left, with the number of steps that end within a day.

    Args:
        step_seconds: The measured seconds per step.
        step: The number of steps that are done.
    """
    within_a_day = step + max(1, int(_DAY_SECONDS / step_seconds))
    return (
        f"warning: more than a day is left at {duration_text(step_seconds)} per step; to end earlier, stop this run "
        f"and repeat its command with trainer.total_training_steps={within_a_day}"
    )


def _curriculum_suffix(data: Mapping[str, Any], dataset: str) -> str:
    """Return a dataset's level, success at each level and share of groups without a signal; "" without levels."""
    at_level = f"curriculum/{dataset}/success_at_level_"
    success = [f"{key[len(at_level) :]}: {float(value):.2f}" for key, value in data.items() if key.startswith(at_level)]
    if not success:
        return ""
    level = data.get(f"curriculum/{dataset}/level")
    parts = [] if level is None else [f"level {level:g}"]
    parts += [", ".join(success), f"no signal {data[f'train/{dataset}/zero_signal']:.2f}"]
    return f" ({'; '.join(parts)})"


def validation_line(data: Mapping[str, Any]) -> str:
    """Return the validation accuracy by dataset (0 to 1), or an empty string if `data` has none."""
    return ", ".join(f"{name} {value:.3f}" for name, value in _by_dataset(data, VALIDATION_ACCURACY))


def _by_dataset(data: Mapping[str, Any], metric: re.Pattern[str]) -> list[tuple[str, float]]:
    """Return the dataset, which is the first group of `metric`, and the value of each metric that it matches."""
    return [(match[1], float(value)) for key, value in sorted(data.items()) if (match := metric.fullmatch(key))]


def _is_shown(data: Mapping[str, Any], phase: str) -> bool:
    return float(data.get(f"timing_s/{phase}", 0)) >= 0.05


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else duration_text(seconds)


def _as_number(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return number
