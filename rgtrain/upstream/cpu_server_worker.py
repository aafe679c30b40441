"""Extend the vLLM worker behind verl's servers on a CPU, so that it can load new weights after every training step."""

from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from rgtrain.upstream.replacements import apply


class CpuServerWorker(vLLMColocateWorkerExtension):
    """verl's extension of vLLM's worker. vLLM adds it to the base classes of a worker."""

    def __new__(cls, **arguments: Any) -> "CpuServerWorker":
        """Create the worker. vLLM builds the model later, with linear layers that keep their weights."""
        apply("rollout")
        return super().__new__(cls, **arguments)
