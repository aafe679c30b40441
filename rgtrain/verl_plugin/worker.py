"""verl's worker, which trains; this one generates too, with vLLM in the same process."""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import zmq
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.rollout import base

from rgtrain.verl_plugin.vllm_rollout import Group, VllmRollout

base._ROLLOUT_REGISTRY["vllm", "async"] = f"{VllmRollout.__module__}.{VllmRollout.__qualname__}"


class GeneratingWorker(ActorRolloutRefWorker):
    """Generates for the groups of a batch and pushes them to the trainer as they finish."""

    @register(dispatch_mode=Dispatch.ALL_TO_ALL, blocking=False)
    def generate(self, prompts: Sequence[tuple[str, list[int]]], sampling: Mapping[str, Any], address: str) -> None:
        """Complete `prompts`; ranks of one tensor-parallel group get the same ones, and the first sends."""
        sends = self.rank % self.config.rollout.tensor_model_parallel_size == 0
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(address)

            def finished(groups: list[Group]) -> None:
                if sends:
                    socket.send(pickle.dumps(groups, protocol=pickle.HIGHEST_PROTOCOL))

            self.rollout.generate(prompts, sampling, finished=finished)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    async def release_rollout(self) -> None:
        """Give vLLM's memory back to training."""
        await self.rollout.release()
