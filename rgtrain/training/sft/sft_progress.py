"""Write metrics.jsonl and progress lines of a supervised run, as a backend of verl's tracking."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rgtrain.checkpoints.metrics_file import METRICS
from rgtrain.tables import duration_text
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.progress import MetricsFile
from rgtrain.upstream.masked_tracking import masking_secrets


class SftProgress:
    """A backend of verl's tracking that writes the metrics, announces one line per step, and ends a stopped run.

    Args:
        metrics_file: The file to write to.
        num_steps: The number of steps of the run.
    """

    def __init__(self, metrics_file: MetricsFile, *, num_steps: int):
        self._metrics_file = metrics_file
        self._num_steps = num_steps
        self._step_seconds: list[float] = []
        self._began_at = time.monotonic()
        ACTIVITY.step = 1
        STOP.steps_begin()

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Record the metrics of one step.

        Raises:
            TrainingStopped: The run was asked to stop.
        """
        now = time.monotonic()
        self._step_seconds.append(now - self._began_at)
        self._began_at = now
        self._metrics_file.write({**data, "timing_s/step": self._step_seconds[-1]}, step=step)
        announce(self._line(data, step))
        ACTIVITY.step = step + 1
        ACTIVITY.moved()
        # The last step is followed by the export.
        if STOP.is_made and step < self._num_steps:
            raise TrainingStopped(f"stopped after step {step}, and the same command starts over")

    def finish(self) -> None:
        """Do nothing, because nothing is buffered."""

    def _line(self, data: Mapping[str, Any], step: int) -> str:
        """Return the progress line of a step."""
        parts = [
            f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}",
            f"loss {data['train/loss']:.4f}",
            f"gradient norm {data['train/grad_norm']:.3g}",
            f"{data['train/global_tokens']:,} tokens",
            f"{self._step_seconds[-1]:.1f} s",
            f"{duration_text(median(self._step_seconds[-10:]) * (self._num_steps - step))} left",
        ]
        return " | ".join(parts)


def with_progress(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap verl's factory of trackers so that the run's own backend is among them, and secrets are masked."""

    def tracking(*, config: dict[str, Any], **arguments: Any) -> Any:
        trackers = masking_secrets(original)(config=config, **arguments)
        file = MetricsFile(Path(config["run_dir"]) / METRICS, first_step=1)
        trackers.logger["progress"] = SftProgress(file, num_steps=config["trainer"]["total_training_steps"])
        return trackers

    return tracking
