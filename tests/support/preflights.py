"""Run either form of the preflight on a plain configuration."""

from typing import Any

from rgtrain import preflight
from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.preflight_report import run_preflight


def check_plain(config: dict[str, Any]) -> list[str]:
    """Run the checks of every start.

    Args:
        config: The plain configuration of a run.

    Returns:
        The warnings, one line each.

    Raises:
        ConfigError: The first error found.
    """
    return preflight.check(RunConfig.of(config))


def preflight_only(config: dict[str, Any]) -> tuple[int, str]:
    """Return the exit code and the text of `preflight=only` for a run's plain configuration."""
    lines: list[str] = []
    return run_preflight(config, say=lines.append), "\n".join(lines)
