"""A subclass of verl's training worker that also generates, with vLLM in the same process."""

from collections.abc import Mapping, Sequence
from typing import Any

from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from rgtrain.machine.garbage_collection import ignore_existing_objects
from rgtrain.training.rollout.channel import TRAINER, Endpoint
from rgtrain.training.rollout.dispatch import EngineCapacity
from rgtrain.training.rollout.groups import Group, PartKey, PartRequest

# A critic in this process needs its engine before verl imports this module as a model's external_lib.
from rgtrain.upstream import in_worker  # noqa: F401


class GeneratingWorker(ActorRolloutRefWorker):
    """A worker that trains and generates. It pushes each finished group to the trainer."""

    def __init__(self, *args: Any, **kwargs: Any):
        # The existing objects are imported modules. verl and vLLM collect all garbage several times during loading.
        ignore_existing_objects()
        super().__init__(*args, **kwargs)

    @register(dispatch_mode=Dispatch.ALL_TO_ALL, blocking=False)
    async def generate(
        self,
        parts: Sequence[PartRequest],
        sampling: Mapping[str, Any],
        number: int,
        seed: int,
        endpoint: Endpoint,
        reports_completions: bool,
    ) -> EngineCapacity:
        """Generate completions and send each group to the trainer once it is complete.

        This is a coroutine, so Ray can start the next call while this one is running. The prompts of both calls are
        then generated together.

        Args:
            parts: The requested groups, or parts of them. Ranks of a tensor-parallel group get the same requests, and
                only the first rank sends messages.
            sampling: Temperature, top_p and top_k.
            number: The number of earlier calls to this engine, equal on all ranks of a tensor-parallel group.
            seed: The seed of sampling, equal on all ranks of a tensor-parallel group.
            endpoint: The trainer's address and secrets.
            reports_completions: Whether to report single completions, because groups wait for room in an engine.

        Returns:
            The number of sequences that the engine generates together.
        """
        # After this, the process also reports the progress of updates, including those of a critic.
        TRAINER.connect(endpoint, worker=self.rank)
        sends = self.rank % self.config.rollout.tensor_model_parallel_size == 0

        def finished(groups: list[Group], completions: list[PartKey]) -> None:
            if sends:
                for key in completions if reports_completions else ():
                    TRAINER.report_completion(key)
                for group in groups:
                    TRAINER.send(group)

        await self.rollout.generate(parts, sampling, number=number, seed=seed, finished=finished)
        return self.rollout.capacity

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def trained_model(self) -> tuple[str, dict[str, Any]]:
        """Return the name of the layout in training, and the content of the model's config.json."""
        engine = self.actor.engine
        return engine.layout.name, engine.model_config.hf_config.to_dict()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    async def update_weights(self, global_steps: int | None = None, mode: str = "auto") -> None:
        """Give vLLM the actor's parameters.

        If vLLM keeps its memory during training, the parameters are loaded directly, without verl's memory management.

        Args:
            global_steps: The step whose weights these are.
            mode: An option of verl's method, unused if vLLM keeps its memory.

        Raises:
            NotImplementedError: The model has a LoRA adapter that is not merged.
        """
        if self.config.rollout.free_cache_engine:
            await super().update_weights(global_steps=global_steps, mode=mode)
            return
        weights, adapter = self.actor.engine.get_per_tensor_param()
        if adapter is not None:
            raise NotImplementedError("LoRA adapters in vLLM are not supported; set model.lora.merge=true")
        await self.rollout.update_weights(weights, global_steps=global_steps)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    async def release_rollout(self) -> None:
        """Free vLLM's memory for training."""
        await self.rollout.release()
