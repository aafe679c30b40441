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

    def _update_weights(self, weights: list[tuple[str, Any]], peft_config: Any, base_sync_done: bool) -> None:
        # verl sends tied weights twice. With adapters, vLLM 0.31 looks for the first of them under another name and
        # refuses the second.
        if peft_config and not base_sync_done and self.model_runner.model.config.tie_word_embeddings:
            weights = [(name, weight) for name, weight in weights if name != "lm_head.weight"]
        super()._update_weights(weights, peft_config=peft_config, base_sync_done=base_sync_done)
