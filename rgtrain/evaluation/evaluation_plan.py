"""Prepare an evaluation's problems, prompts and model, before its engine starts."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.trained_problems import read_trained_problems
from rgtrain.errors import ConfigError
from rgtrain.evaluation.endpoint import EndpointEngine, connect
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.engine_interface import Engine
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_model import EvaluatedModel, opened_model, read_model_json
from rgtrain.evaluation.evaluation_prompts import (
    PromptedProblem,
    load_tokenizer,
    needed_length,
    prompt_problems,
    render_prompts,
)
from rgtrain.evaluation.replicas import ReplicatedEngine
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.machine.vllm_settings import attention_backend_warning
from rgtrain.models.context_length import vllm_overrides
from rgtrain.problems.answers import PROMPT_END_TOKENS, opens_thinking


@dataclass(frozen=True)
class EvaluationPlan:
    """The prompts of an evaluation and the model that answers them.

    Attributes:
        prompted: The problems with their prompts.
        token_ids: The token ids of each prompt; None for an endpoint.
        model: The model's identity, as plain JSON values.
        num_trained: The number of problems that the model was trained on; None if it does not record them.
        thinking_begun: Whether the prompts end with an opening think tag; False for an endpoint, which renders prompts.
        request_format: Returns the form of the requests to an endpoint (see RequestFormat.as_json). It is empty until
            the engine is started.
        start: Starts the engine, given the sampling seed and the number of requests refused to earlier commands.
    """

    prompted: Sequence[PromptedProblem]
    token_ids: Sequence[Sequence[int] | None]
    model: dict[str, Any]
    start: Callable[[int, int], Engine]
    num_trained: int | None = None
    thinking_begun: bool = False
    request_format: Callable[[], Mapping[str, Any]] = dict

    def prompts_digest(self, *, limit: int | None = None) -> str:
        """Return a digest of the first `limit` problems of each dataset and of their prompts.

        Args:
            limit: The maximum number of problems of each dataset; None for all that the plan has.

        Returns:
            32 hex digits, which are equal for two evaluations exactly if these problems and prompts are.
        """
        pairs = zip(self.prompted, self.token_ids, strict=True)
        asked = [
            [item.problem.fingerprint, item.messages, token_ids]
            for item, token_ids in pairs
            if limit is None or item.problem.index < limit
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


@contextmanager
def opened_plan(config: EvaluationConfig) -> Iterator[EvaluationPlan]:
    """Prepare an evaluation, without starting its engine.

    Args:
        config: The evaluation.

    Yields:
        The prompts and the model. A temporary copy of the model is removed at the end of the block.

    Raises:
        ConfigError: The model, a prompt or the endpoint cannot be used.
    """
    prompted = prompt_problems(config.datasets, config.prompt_style, limit=config.limit)
    settings = config.endpoint_settings
    if settings is not None:
        yield _endpoint_plan(config, settings, prompted)
        return
    if warning := attention_backend_warning():
        print(f"warning: {warning}", flush=True)
    with opened_model(config.model_path, base_model=config.base_model) as model:
        yield _local_plan(config, prompted, model)


def _endpoint_plan(
    config: EvaluationConfig, settings: EndpointSettings, prompted: Sequence[PromptedProblem]
) -> EvaluationPlan:
    # Connect only if an answer is missing: a finished evaluation is shown without its endpoint.
    @functools.cache
    def connected() -> EndpointEngine:
        engine = connect(settings, config.sampling, num_requests=len(prompted) * config.num_samples)
        if engine.max_model_len is not None and config.max_tokens >= engine.max_model_len:
            raise ConfigError(
                f"the context of {settings.model!r} at {settings.shown_url} is {engine.max_model_len} tokens, too few "
                f"for any prompt plus max_tokens {config.max_tokens}; lower max_tokens"
            )
        return engine

    identity = {"name": settings.model, "base_url": settings.base_url}
    return EvaluationPlan(
        prompted,
        [None] * len(prompted),
        identity,
        lambda seed, num_refused: replace(connected(), seed=seed, num_refused=num_refused),
        request_format=lambda: connected().request_format.as_json() if connected.cache_info().currsize else {},
    )


def _local_plan(config: EvaluationConfig, prompted: Sequence[PromptedProblem], model: EvaluatedModel) -> EvaluationPlan:
    loaded = load_tokenizer(
        model.folder,
        model_path=config.model_path,
        adapter=model.adapter,
        chat_template=config.chat_template,
        arguments=config.chat_template_kwargs,
    )
    token_ids = render_prompts(prompted, loaded)
    num_tokens = needed_length(
        prompted, token_ids, max_tokens=config.max_tokens, context=loaded.context, max_model_len=config.max_model_len
    )
    if config.tensor_parallel_size > 1:
        _check_divides(config.tensor_parallel_size, model.folder)

    def start(seed: int, num_refused: int) -> Engine:
        settings = VllmSettings(
            model=str(model.folder),
            dtype=config.dtype,
            max_model_len=num_tokens,
            seed=seed,
            tensor_parallel_size=config.tensor_parallel_size,
            adapter=str(model.adapter) if model.adapter else None,
            adapter_rank=model.adapter_rank,
            tokenizer=str(loaded.folder),
            overrides=vllm_overrides(model.folder, max_model_len=num_tokens),
        )
        if config.num_copies > 1:
            return ReplicatedEngine(settings, num_copies=config.num_copies)
        return VllmEngine(settings)

    trained = read_trained_problems(model.adapter or model.folder)
    num_trained = None if trained is None else sum(item.problem.digest in trained for item in prompted)
    prompt_end = loaded.renderer.tokenizer.decode(token_ids[0][-PROMPT_END_TOKENS:])
    identity = {"digest": model.digest()}
    return EvaluationPlan(prompted, token_ids, identity, start, num_trained, opens_thinking(prompt_end))


def _check_divides(tensor_parallel_size: int, model: Path) -> None:
    num_heads = read_model_json(model / "config.json").get("num_attention_heads")
    if isinstance(num_heads, int) and num_heads % tensor_parallel_size:
        raise ConfigError(
            f"tensor_parallel_size {tensor_parallel_size} does not divide the model's {num_heads} attention heads; "
            "give a divisor of that number"
        )
