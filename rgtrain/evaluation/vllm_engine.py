"""An engine that runs vLLM in this process."""

import atexit
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rgtrain.evaluation.engine_interface import Completion, Prompt, Sampling
from rgtrain.evaluation.evaluation_progress import ACTIVITY
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.machine.devices import num_gpus
from rgtrain.machine.vllm_settings import attention_backend, vllm_environment
from rgtrain.upstream.replacements import apply


@dataclass(frozen=True)
class VllmSettings:
    """Settings of a VllmEngine.

    Attributes:
        model: The folder of the model.
        dtype: The floating-point type of the computation, or "auto".
        max_model_len: The maximum length of prompt plus completion, in tokens. vLLM reserves memory for this length.
        seed: The sampling seed. On one machine, the same prompts in the same order give the same completions again.
        tensor_parallel_size: The number of GPUs that share the model.
        adapter: The folder of a LoRA adapter; None without one.
        adapter_rank: The adapter's rank; 0 without an adapter.
        tokenizer: The folder of the tokenizer; None for the model's.
        overrides: Values that replace those of the model's config.json.
    """

    model: str
    dtype: str
    max_model_len: int
    seed: int
    tensor_parallel_size: int = 1
    adapter: str | None = None
    adapter_rank: int = 0
    tokenizer: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


class NumberedPrompt(NamedTuple):
    """A prompt, or some of its completions, on the way to an engine.

    Attributes:
        position: The position of the prompt among all prompts.
        prompt: The prompt with the number of completions that are wanted here.
        seed: The seed of the first completion, which the next ones count on; None if the engine draws from its own.
    """

    position: int
    prompt: Prompt
    seed: int | None = None


class PromptFeed(Protocol):
    """A source of prompts for an engine that is already generating."""

    def take(self, num_running: int) -> Sequence[NumberedPrompt] | None:
        """Return the prompts that have arrived since the last call.

        Args:
            num_running: The number of completions that the engine has not finished. If it is 0, this waits.

        Returns:
            The prompts, which may be none; None if no more will come.
        """
        ...


class _SinglePortion:
    """A feed that gives all prompts at once."""

    def __init__(self, prompts: Sequence[NumberedPrompt]):
        self._portions: list[Sequence[NumberedPrompt]] = [prompts]

    def take(self, num_running: int) -> Sequence[NumberedPrompt] | None:
        return self._portions.pop() if self._portions else None


def prompt_seed(seed: int, position: int) -> int:
    """Return the seed of a prompt's first completion, which does not depend on the other prompts.

    Args:
        seed: The seed of the evaluation.
        position: The position of the prompt.

    Returns:
        A number of 62 bits. Seeds of different prompts are far apart.
    """
    return random.Random(f"{seed} {position}").getrandbits(62)


class VllmEngine:
    """vLLM in this process, on the GPUs if there are any, otherwise on the CPU. Starting it may take a minute.

    Attributes:
        llm: vLLM's LLM object.
        max_num_seqs: The number of completions that it generates together.
        seeds_prompts: Whether each prompt gets its own seed, so that a sampled completion does not depend on the other
            prompts. Only vLLM's newer model runner draws with many seeds at no cost. The older one draws row by row.
    """

    def __init__(self, settings: VllmSettings):
        on_cpu = _set_environment()
        if on_cpu:
            _silence_exit()
        # Import vLLM late: it takes seconds, and it reads its environment variables during the import.
        from vllm import LLM

        apply("evaluation", device="cpu" if on_cpu else "cuda")
        self._adapter = settings.adapter
        self._seed = settings.seed
        self.llm = LLM(
            settings.model,
            tokenizer=settings.tokenizer,
            hf_overrides=dict(settings.overrides),
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            seed=settings.seed,
            tensor_parallel_size=settings.tensor_parallel_size,
            enable_prefix_caching=True,
            attention_backend=attention_backend(),
            **(_CPU_SETTINGS if on_cpu else _GPU_SETTINGS),
            **_adapter_settings(settings),
        )
        config = self.llm.llm_engine.vllm_config
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.seeds_prompts: bool = config.use_v2_model_runner

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Generate completions, as described in `Engine.generate`.

        All prompts are submitted at once. The completions of one prompt are yielded together.

        Args:
            prompts: The prompts, with token ids.
            sampling: The sampling parameters.

        Yields:
            The position of a prompt, and one of its completions.

        Raises:
            EvaluationStopped: The evaluation was asked to stop.
        """
        is_seeded = self.seeds_prompts and sampling.temperature > 0
        numbered = [
            NumberedPrompt(position, prompt, prompt_seed(self._seed, position) if is_seeded else None)
            for position, prompt in enumerate(prompts)
        ]
        yield from self.generate_fed(_SinglePortion(numbered), sampling)

    def generate_fed(self, feed: PromptFeed, sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Generate completions of prompts that may arrive while others are being generated.

        Args:
            feed: The source of the prompts. It is asked before each decoding step.
            sampling: The sampling parameters.

        Yields:
            The position of a prompt, and one of its completions.

        Raises:
            EvaluationStopped: The evaluation was asked to stop.
        """
        positions: dict[str, int] = {}
        engine = self.llm.llm_engine
        is_open = True
        # LLM.generate runs the same loop, but returns only after the last completion.
        while is_open or engine.has_unfinished_requests():
            STOP.check()
            if is_open:
                arrived = feed.take(engine.get_num_unfinished_requests())
                is_open = arrived is not None
                if arrived:
                    requests = self._submit(arrived, sampling)
                    positions.update(zip(requests, (numbered.position for numbered in arrived), strict=True))
                if not engine.has_unfinished_requests():
                    continue
            outputs = engine.step()
            ACTIVITY.moved()
            for output in outputs:
                if output.finished:
                    position = positions.pop(output.request_id)
                    for answer in output.outputs:
                        completion = Completion(answer.text, len(answer.token_ids), answer.finish_reason)
                        yield position, completion

    def close(self) -> None:
        """Shut down vLLM and free its memory."""
        # This destroys the process group of torch. vLLM 0.24 leaves it to the exit of the process if its engine runs in
        # the process, and torch then warns about it on GPUs.
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def _submit(self, numbered: Sequence[NumberedPrompt], sampling: Sampling) -> list[str]:
        """Submit prompts to vLLM and return the request ids of its outputs, in order."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        params = [
            SamplingParams(
                n=prompt.num_samples,
                seed=seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or 0,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                stop=list(sampling.stop),
                max_tokens=sampling.max_tokens,
            )
            for _, prompt, seed in numbered
        ]
        token_ids = [prompt.token_ids for _, prompt, _ in numbered if prompt.token_ids is not None]
        if len(token_ids) < len(numbered):
            raise ValueError("a prompt has no token ids; render the prompts first")
        request_ids = self.llm.enqueue(
            [{"prompt_token_ids": list(ids)} for ids in token_ids],
            params,
            lora_request=LoRARequest("adapter", 1, self._adapter) if self._adapter else None,
            use_tqdm=False,
        )
        # vLLM appends "-" and random letters for internal use.
        return [request_id.partition("-")[0] for request_id in request_ids]


# Only whole blocks are cached, and vLLM's default block of 128 tokens is longer than most prompts.
_CPU_SETTINGS: dict[str, Any] = {"enforce_eager": True, "block_size": 32}
# Run decoding steps as CUDA graphs and everything else with vLLM's own kernels. Compiling would take a minute.
_GPU_SETTINGS: dict[str, Any] = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}

# vLLM reserves memory for a maximum rank, and accepts only these values.
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def _adapter_settings(settings: VllmSettings) -> dict[str, Any]:
    if not settings.adapter:
        return {}
    return {"enable_lora": True, "max_lora_rank": min(rank for rank in ADAPTER_RANKS if rank >= settings.adapter_rank)}


def _set_environment() -> bool:
    """Set vLLM's environment variables, except those that the user has set. Return whether vLLM runs on the CPU."""
    on_cpu = num_gpus() == 0
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # A second process takes seconds to start, and did not generate faster on one GPU.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **vllm_environment(),
    }
    if on_cpu:
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # vLLM would pin its threads to cores that other processes may be using.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    return on_cpu


def _silence_exit() -> None:
    # The CPU build loads Triton without using it, and Triton prints 40 lines about leaked objects at exit.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
