"""The package that `verifiers` and prime-rl import for the taskset id `rgtrain-verifiers`."""

from rgtrain.environments.verifiers_adapter import ReasoningGymTaskset, SingleReplyHarness, load_environment

__all__ = ["ReasoningGymTaskset", "SingleReplyHarness", "load_environment"]
