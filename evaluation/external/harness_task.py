"""The class of this folder's tasks, apart from the functions that judge, which need no lm-evaluation-harness."""

from rgtrain.evaluation.external import BenchmarkTask

__all__ = ["BenchmarkTask"]
