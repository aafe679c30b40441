"""verl's worker, which trains; this one generates too, with vLLM in the same process."""

from collections.abc import Mapping, Sequence
from typing import Any

from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from rgtrain.training.rollout.channel import TRAINER, Endpoint
from rgtrain.training.rollout.groups import Group

# A critic in this process needs its engine before a model names this module as its external_lib.
from rgtrain.upstream import in_worker  # noqa: F401


class GeneratingWorker(ActorRolloutRefWorker):
    """Generates for the groups of a batch and pushes them to the trainer as they finish."""

    @register(dispatch_mode=Dispatch.ALL_TO_ALL, blocking=False)
    async def generate(
        self, prompts: Sequence[tuple[str, list[int]]], sampling: Mapping[str, Any], seed: int, endpoint: Endpoint
    ) -> None:
        """Complete `prompts`; ranks of one tensor-parallel group get the same ones and seed, and the first sends.

        A coroutine, so that Ray starts the next call while this one is under way: its prompts join these.
        """
        # From here on, this process also reports the progress of updates; the critic in it does, too.
        TRAINER.connect(endpoint, worker=self.rank)
        sends = self.rank % self.config.rollout.tensor_model_parallel_size == 0

        def finished(groups: list[Group]) -> None:
            if sends:
                for group in groups:
                    TRAINER.send(group)

        await self.rollout.generate(prompts, sampling, seed=seed, finished=finished)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    async def update_weights(self, global_steps: int | None = None, mode: str = "auto") -> None:
        """Give vLLM the actor's parameters; where vLLM keeps its memory, there is none to be moved for it."""
        if self.config.rollout.free_cache_engine:
            await super().update_weights(global_steps=global_steps, mode=mode)
            return
        weights, adapter = self.actor.engine.get_per_tensor_param()
        if adapter is not None:
            raise NotImplementedError("LoRA adapters in vLLM are not supported: set model.lora.merge=true")
        await self.rollout.update_weights(weights, global_steps=global_steps)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    async def release_rollout(self) -> None:
        """Give vLLM's memory back to training."""
        await self.rollout.release()
