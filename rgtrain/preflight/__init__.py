"""Everything that can be known to be wrong with a run before Ray, vLLM or a GPU is touched."""

from rgtrain.preflight.checks import check

__all__ = ["check"]
