"""Read the folder of a run: its configuration, metrics, command and rollouts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from rgtrain.checkpoints.metrics_file import METRICS, read_metrics
from rgtrain.checkpoints.rollout_files import ROLLOUTS, RolloutBlock, read_index
from rgtrain.config.plain_tree import lookup
from rgtrain.errors import ConfigError

_CONFIG, _PROVENANCE = "config.yaml", "provenance.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's folder.

    Attributes:
        folder: The run's folder.
        config: The complete configuration.
        records: The metrics of each step, in order of steps. A step that was logged twice counts once.
        command: The command of the last start, without secrets. Empty if unknown.
        blocks: The index of the kept rollouts.
    """

    folder: Path
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    command: str
    blocks: Sequence[RolloutBlock]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The records of training steps, without those of a validation before training."""
        return [record for record in self.records if is_number(record.get("timing_s/step"))]

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a value of the configuration by its full key."""
        return lookup(self.config, key, default)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Args:
        folder: The folder, which may belong to a run that is still going on.

    Returns:
        The record of the run.

    Raises:
        ConfigError: The folder is not a run's folder, or it has no metrics yet.
    """
    if not (folder / METRICS).is_file():
        raise ConfigError(
            f"{str(folder)!r} has no {METRICS}; give the folder of a run (its run_dir), after its first step"
        )
    try:
        config = yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {folder / _CONFIG}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / _CONFIG} is not a run's configuration; give the folder of a run")
    by_step = {record["step"]: record for record in read_metrics(folder / METRICS)[0]}
    records = [by_step[step] for step in sorted(by_step)]
    return RunRecord(folder, config, records, _last_command(folder / _PROVENANCE), read_index(folder / ROLLOUTS))


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a number. JSON has no infinity here, and null stands for NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _last_command(path: Path) -> str:
    try:
        command = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["command"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return command if isinstance(command, str) else ""
