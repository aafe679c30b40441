"""Extend the vLLM worker behind verl's servers on a CPU, so that it can load new weights after every training step.

vLLM imports this module in its worker, before it builds the model, as `worker_extension_cls`.
"""

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from rgtrain.upstream.replacements import apply

apply("rollout")


class CpuServerWorker(vLLMColocateWorkerExtension):
    """verl's extension of vLLM's worker. Importing this module keeps the weights of linear layers."""
