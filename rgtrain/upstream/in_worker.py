"""Register our engines and our vLLM rollout for the engine `fast`.

verl imports this module in every worker, as `model.external_lib`.
"""

from rgtrain.upstream.replacements import apply

# A name instead of the class, because the trainer also imports this module and should not import vLLM.
VLLM_ROLLOUT = "rgtrain.training.rollout.vllm_rollout.VllmRollout"

apply("worker")
apply("fast_worker")
