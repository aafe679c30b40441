"""Set aside the files of an earlier start that saved no checkpoint and had other settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.metrics_file import METRICS
from rgtrain.errors import ConfigError
from rgtrain.preflight.run_folder import changed_settings

# The W&B run and the curves of the earlier start must not be continued with other settings.
_FILES = ("config.yaml", METRICS, f"{METRICS}.damaged", "tensorboard", "wandb_run_id")


def set_aside_abandoned_start(config: Mapping[str, Any], run_dir: Path) -> str | None:
    """Move the files of an abandoned start with other settings into a folder `abandoned_N` of the run's folder.

    A run whose checkpoints bind its folder has been refused before. A start with the same settings is continued.

    Args:
        config: The plain configuration of this start, with masked secrets.
        run_dir: The folder of the run.

    Returns:
        A line for the terminal; None if there was no such start.
    """
    if not (run_dir / "config.yaml").is_file():
        return None
    try:
        changed = [key for key, _, _ in changed_settings(config, run_dir)]
    except ConfigError:
        changed = ["config.yaml, which is damaged"]
    if not changed:
        return None
    number = 1
    while (folder := run_dir / f"abandoned_{number}").exists():
        number += 1
    folder.mkdir()
    for name in _FILES:
        if (run_dir / name).exists():
            (run_dir / name).rename(folder / name)
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"moved the files of an earlier start with other settings ({', '.join(changed[:3])}{more}), which saved no "
        f"checkpoint, to {folder}"
    )
