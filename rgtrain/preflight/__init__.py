"""Checks of a run's configuration, model and machine that need no Ray, no vLLM and no GPU."""

from rgtrain.preflight.checks import check

__all__ = ["check"]
