"""Functions that `support.ranks` runs in each rank, with verl's worker for an actor or a critic.

As in a run, the worker reads the project's configuration, takes the engine's class from verl's registry and gives it
nested tensors. Only Ray and the rollout are missing.
"""

import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed
from omegaconf import DictConfig, OmegaConf
from support.training_samples import Sample
from support.weight_ranks import gathered_as_one_by_one, loaded_by_copies, merged_as_exported  # noqa: F401
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.workers.engine import EngineRegistry
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker, TrainingWorkerConfig
from verl.workers.utils.losses import value_loss

from rgtrain.training.update.rank_balance import MiniBatch, RankShare

# A run's worker imports it too, because verl's own critic needs flash-attn.
from rgtrain.upstream import in_worker  # noqa: F401
from rgtrain.upstream.rank_parts import MINI_BATCHES

# verl collects garbage for each worker that it builds. Frozen objects, here those of the imports, are skipped.
gc.freeze()

# The current worker. The tests build several, one after another, in the same processes.
_worker: TrainingWorker
# Recorded during its last update.
_gradients: list[dict[str, np.ndarray]]
_micro_batches: list[list[int]]


def build_actor(config: dict[str, Any]) -> None:
    """Build the actor of a run with this configuration."""
    worker = ActorRolloutRefWorker(config=_without_tokenizer(config["actor_rollout_ref"]), role="actor")
    worker.init_model()
    _observe(worker.actor)


def build_critic(config: dict[str, Any]) -> None:
    """Build the critic of a run with this configuration."""
    config = omega_conf_to_dataclass(_without_tokenizer(config["critic"]))
    config.engine.max_token_len_per_gpu = config.ppo_max_token_len_per_gpu
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="value_model",
            model_config=config.model,
            engine_config=config.engine,
            optimizer_config=config.optim,
            checkpoint_config=config.checkpoint,
        )
    )
    # The random weights of the value head must not depend on the number of ranks.
    torch.manual_seed(0)
    worker.reset()
    worker.set_loss_fn(partial(value_loss, config=config))
    _observe(worker)


def _without_tokenizer(config: dict[str, Any]) -> DictConfig:
    # Loading the tokenizer takes most of a worker's start-up, and an update does not use it.
    return OmegaConf.create(config | {"model": config["model"] | {"load_tokenizer": False}})


def _observe(worker: TrainingWorker) -> None:
    """Make `worker` the current one, and record its gradients per optimizer step and samples per micro-batch."""
    global _worker, _gradients, _micro_batches
    _worker, _gradients, _micro_batches = worker, [], []
    engine = worker.engine
    optimizer_step, forward_step = engine.optimizer_step, engine.forward_step

    def observed_optimizer_step() -> float:
        # Clipping changes gradients in place, so they are copied. Beside adapters, weights are frozen.
        trained = {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}
        _gradients.append({name: weight.grad.full_tensor().numpy().copy() for name, weight in trained.items()})
        return optimizer_step()

    def observed_forward_step(micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        # The sequences that a checkpoint's outputs are computed on have no number.
        if "number" in micro_batch:
            _micro_batches.append(micro_batch["number"].tolist())
        return forward_step(micro_batch, loss_function, forward_only)

    engine.optimizer_step, engine.forward_step = observed_optimizer_step, observed_forward_step


def update(
    mini_batches: Sequence[Sequence[Sample]], *, shares: Sequence[RankShare] | None = None, **settings: Any
) -> dict[str, Any]:
    """Take one optimizer step per mini-batch. Each rank computes its share of every mini-batch.

    Args:
        mini_batches: The samples of each mini-batch.
        shares: The share of each rank, with positions among all samples. By default, ranks have equal numbers of each
            mini-batch, and the first rank's share comes first.
        settings: Other values that the trainer sends with the samples.

    Returns:
        metrics: The values that the trainer logs, by name.
        gradients: Gradients before clipping, by parameter for each mini-batch. Only rank 0 returns them.
        micro_batches: For each micro-batch of this rank, the positions of its samples in their mini-batch.
    """
    _gradients.clear()
    _micro_batches.clear()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    numbered = [pair for samples in mini_batches for pair in enumerate(samples)]
    share = _equal_share(mini_batches, rank, world_size) if shares is None else shares[rank]
    data = _as_tensors([numbered[i] for i in share.samples], {"calculate_entropy": True, **settings})
    tu.assign_non_tensor_data(data, MINI_BATCHES, share.mini_batches)
    output = _worker.train_mini_batch(data)
    return {
        "metrics": reduce_metrics(tu.get(output, "metrics")),
        "gradients": _gradients if rank == 0 else None,
        "micro_batches": _micro_batches,
    }


def _equal_share(mini_batches: Sequence[Sequence[Sample]], rank: int, world_size: int) -> RankShare:
    samples, parts, start = [], [], 0
    for mini_batch in mini_batches:
        size = len(mini_batch)
        own = list(range(start + rank * size // world_size, start + (rank + 1) * size // world_size))
        num_tokens = [len(sample.prompt + sample.response) for sample in mini_batch]
        parts.append(MiniBatch([len(samples) + row for row in range(len(own))], size, num_tokens))
        samples += own
        start += size
    return RankShare(samples, parts)


def counted_update(mini_batches: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """Return the results of `update`, and `collectives`, the number of its collective operations by name."""
    with _Collectives() as collectives:
        return {**update(mini_batches), "collectives": dict(collectives.counts)}


class _Collectives(TorchDispatchMode):
    """Counts the collective operations that are called within, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.counts[function.name()] += 1
        return function(*args, **kwargs or {})


def infer(samples: Sequence[Sample], **settings: Any) -> dict[str, list[np.ndarray]]:
    """Compute log-probabilities and entropy without gradients, as for the old policy.

    Args:
        samples: This rank computes all of them.
        settings: Other values that the trainer sends with the samples. `temperature` may be a list, one per sample.

    Returns:
        log_probs, entropy: For each sample, one value per token of the response.
    """
    settings = {"calculate_entropy": True, "compute_loss": False, **settings}
    output = _worker.infer_batch(_as_tensors(list(enumerate(samples)), settings))
    # The outputs cover whole sequences. Each value is at the position before the predicted token.
    return {
        name: [
            values[len(sample.prompt) - 1 : -1].numpy()
            for sample, values in zip(samples, output[name].unbind(), strict=True)
        ]
        for name in ("log_probs", "entropy")
    }


def infer_shares(shares: Sequence[Sequence[Sample]], **settings: Any) -> dict[str, list[np.ndarray]]:
    """Compute log-probabilities and entropy of this rank's share; see `infer`."""
    return infer(shares[torch.distributed.get_rank()], **settings)


def _as_tensors(numbered: Sequence[tuple[int, Sample]], settings: dict[str, Any]) -> TensorDict:
    """Return the numbered samples as the trainer sends them, with one nested tensor per field and common settings."""

    def nested(field: Callable[[Sample], list[Any]]) -> torch.Tensor:
        rows = [torch.tensor(field(sample)) for _, sample in numbered]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    mask = nested(lambda sample: [1] * len(sample.response))
    fields = {
        "number": torch.tensor([number for number, _ in numbered]),
        "prompts": nested(lambda sample: sample.prompt),
        "responses": nested(lambda sample: sample.response),
        "input_ids": nested(lambda sample: sample.prompt + sample.response),
        "position_ids": nested(lambda sample: list(range(len(sample.prompt + sample.response)))),
        "response_mask": mask,
        "loss_mask": mask,
        "advantages": nested(lambda sample: [sample.advantage] * len(sample.response)),
        "old_log_probs": nested(lambda sample: sample.old_log_probs),
        "ref_log_prob": nested(lambda sample: sample.ref_log_prob),
        "rollout_log_probs": nested(lambda sample: sample.rollout_log_probs),
        # Only a critic reads these, and any numbers will do.
        "values": nested(lambda sample: sample.old_log_probs),
        "returns": nested(lambda sample: sample.ref_log_prob),
    }
    settings = {"temperature": 1.0, **settings}
    if isinstance(settings["temperature"], list):
        fields["temperature"] = torch.tensor(settings.pop("temperature"))
    return tu.get_tensordict(fields, settings)


def weights() -> dict[str, np.ndarray]:
    """Return the weights by name, as vLLM receives them."""
    weights, adapter = _worker.engine.get_per_tensor_param()
    assert adapter is None
    return {name: weight.detach().numpy().copy() for name, weight in weights}


def mesh_shape() -> tuple[int, ...]:
    """Return the shape of the mesh of ranks: with hybrid sharding, the copies of the states and the ranks of each."""
    return tuple(_worker.engine.device_mesh.shape)


def has_gradients() -> bool:
    """Return whether any parameter has a gradient."""
    return any(parameter.grad is not None for parameter in _worker.engine.module.parameters())


def registered_engines() -> dict[tuple[str, str], str]:
    """Return the names of verl's registered engine classes for fsdp2, by model type and device."""
    return {
        (model_type, device): engine.__name__
        for model_type in ("language_model", "value_model")
        for device, engine in EngineRegistry._engines[model_type]["fsdp2"].items()
    }


def save_checkpoint(folder: str) -> None:
    """Save the model as a run does."""
    _worker.save_checkpoint(folder)


def load_checkpoint(folder: str) -> None:
    """Load a checkpoint as a run does."""
    _worker.load_checkpoint(folder)


def training_state() -> dict[str, Any]:
    """Return the state that a checkpoint restores.

    Returns:
        tensors: The whole tensors of the model by name, and those of the optimizer by parameter and name.
        options: The optimizer's parameter groups.
        schedule: The state of the schedule of the learning rate.
    """
    engine = _worker.engine
    optimizer = engine.optimizer.state_dict()
    tensors = dict(engine.module.state_dict())
    for number, entries in optimizer["state"].items():
        tensors |= {f"{key} of parameter {number}": value for key, value in entries.items()}
    return {
        "tensors": {name: _whole(tensor) for name, tensor in tensors.items()},
        "options": optimizer["param_groups"],
        "schedule": engine.lr_scheduler.state_dict(),
    }


def _whole(tensor: torch.Tensor) -> np.ndarray:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().numpy().copy()


def random_numbers() -> list[float]:
    """Draw a number from each random generator of this process."""
    return [torch.rand(()).item(), float(np.random.random()), random.random()]
