"""verl's vLLM server, able to generate a group of completions in one request.

verl asks for each completion by itself, and vLLM then hands every new token of each through Python: for small models
that takes several times as long as generating.
"""

from dataclasses import dataclass
from typing import Any

import ray
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind


@dataclass(frozen=True)
class Group:
    """The completions of one prompt: token ids, the log-probability of each, and the version of the weights."""

    responses: list[list[int]]
    log_probs: list[list[float]]
    version: int


class GroupServer(vLLMHttpServer):
    """verl's server with `generate_group`; everything else, weight updates and sleeping too, is verl's."""

    async def generate_group(self, prompt_ids: list[int], request_id: str, sampling: dict[str, Any]) -> Group:
        """Completions of `prompt_ids`, as many as `sampling["n"]`; the other keys are vLLM's SamplingParams'."""
        if self.lora_as_adapter or self.config.enable_rollout_routing_replay:
            raise NotImplementedError("LoRA adapters in vLLM and routing replay need verl's own agent loop")
        params = SamplingParams(
            **sampling,
            max_tokens=min(self.config.response_length, self.config.max_model_len - len(prompt_ids)),
            ignore_eos=self.config.ignore_eos,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=prompt_ids)
        # FINAL_ONLY: the whole group comes at once.
        [final] = [output async for output in self.engine.generate(prompt, params, request_id)]
        outputs = sorted(final.outputs, key=lambda output: output.index)
        return Group(
            responses=[list(output.token_ids) for output in outputs],
            log_probs=[_sampled_log_probs(output) for output in outputs],
            version=self.global_steps,
        )


def _sampled_log_probs(output: Any) -> list[float]:
    """Of each sampled token, which vLLM puts first at its position."""
    flat = output.logprobs
    return [flat.logprobs[start] for start in flat.start_indices]


class GroupReplica(vLLMReplica):
    """One vLLM engine on its GPUs, with our server."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(GroupServer)


def register() -> None:
    """Make verl start our server where `rollout.name` is vllm."""
    RolloutReplicaRegistry.register("vllm", lambda: GroupReplica)
