"""vLLM on a CPU, able to take new weights after every training step."""

import inspect
from typing import Any

from vllm.model_executor.layers import utils as vllm_layers

from rgtrain.upstream.workarounds import still_needed


def keep_packed_weights() -> None:
    """vLLM's CPU linear layers pack their weight and drop it, so that no new weight could be loaded into it."""
    original = vllm_layers.dispatch_cpu_unquantized_gemm
    still_needed("remove_weight" in inspect.signature(original).parameters, "vLLM's CPU layers keep their weights")

    def dispatch(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    vllm_layers.dispatch_cpu_unquantized_gemm = dispatch
