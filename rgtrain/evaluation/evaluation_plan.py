"""Prepare an evaluation: its problems, prompts and model. The engine is started last."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.endpoint import EndpointEngine
from rgtrain.evaluation.engine_interface import Engine
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_model import EvaluatedModel, opened_model
from rgtrain.evaluation.evaluation_prompts import PromptedProblem, prompt_problems, render_prompts
from rgtrain.evaluation.json_file import read_json
from rgtrain.evaluation.replicas import ReplicatedEngine
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.machine.vllm_settings import attention_backend


@dataclass(frozen=True)
class EvaluationPlan:
    """The prompts of an evaluation and the model that answers them.

    Attributes:
        prompted: The problems with their prompts.
        token_ids: Those of each prompt; None behind an endpoint.
        model: The model's identity, as plain JSON values.
        start: Starts the engine, given the seed of its sampling.
    """

    prompted: Sequence[PromptedProblem]
    token_ids: Sequence[Sequence[int] | None]
    model: dict[str, Any]
    start: Callable[[int], Engine]

    @property
    def prompts_digest(self) -> str:
        """32 hex digits that two evaluations share exactly if they put the same problems in the same way."""
        pairs = zip(self.prompted, self.token_ids, strict=True)
        asked = [[item.problem.fingerprint, item.messages, token_ids] for item, token_ids in pairs]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


@contextmanager
def opened_plan(config: EvaluationConfig) -> Iterator[EvaluationPlan]:
    """Prepare the evaluation of `config`. Every fault of its model, prompts or endpoint raises ConfigError here."""
    prompted = prompt_problems(config)
    if config.endpoint_settings:
        yield _endpoint(config, prompted)
        return
    attention_backend()
    with opened_model(config.model_path, base_model=config.base_model) as model:
        yield _local(config, prompted, model)


def _endpoint(config: EvaluationConfig, prompted: Sequence[PromptedProblem]) -> EvaluationPlan:
    settings = config.endpoint_settings
    engine = EndpointEngine(settings)
    identity = {"name": settings.model, "base_url": settings.base_url}
    if engine.max_model_len is not None and config.max_tokens >= engine.max_model_len:
        raise ConfigError(
            f"the context of {settings.model!r} at {settings.base_url} is {engine.max_model_len} tokens, too few "
            f"for any prompt plus max_tokens {config.max_tokens}; lower max_tokens"
        )
    return EvaluationPlan(prompted, [None] * len(prompted), identity, lambda seed: engine)


def _local(config: EvaluationConfig, prompted: Sequence[PromptedProblem], model: EvaluatedModel) -> EvaluationPlan:
    token_ids, num_tokens = render_prompts(prompted, config, folder=model.folder)
    _check_divides(config, model)

    def start(seed: int) -> Engine:
        settings = VllmSettings(
            model=str(model.folder),
            dtype=config.dtype,
            max_model_len=num_tokens,
            seed=seed,
            tensor_parallel_size=config.tensor_parallel_size,
            adapter=str(model.adapter) if model.adapter else None,
            adapter_rank=model.adapter_rank,
        )
        if config.num_copies > 1:
            return ReplicatedEngine(settings, num_copies=config.num_copies)
        return VllmEngine(settings)

    return EvaluationPlan(prompted, token_ids, {"digest": model.digest()}, start)


def _check_divides(config: EvaluationConfig, model: EvaluatedModel) -> None:
    if config.tensor_parallel_size == 1:
        return
    num_heads = read_json(model.folder / "config.json", fix="download or save the model again").get(
        "num_attention_heads"
    )
    if isinstance(num_heads, int) and num_heads % config.tensor_parallel_size:
        raise ConfigError(
            f"tensor_parallel_size {config.tensor_parallel_size} does not divide the model's {num_heads} heads"
        )
