"""Loaded by verl in every training worker, as `model.external_lib`: puts our engines and vLLM into place."""

from rgtrain.upstream.replacements import apply

# By name: the trainer imports this module too, and needs no vLLM.
VLLM_ROLLOUT = "rgtrain.training.rollout.vllm_rollout.VllmRollout"

apply("worker")
