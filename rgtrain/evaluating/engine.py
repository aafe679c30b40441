"""What answers prompts: vLLM in this process, behind the `Engine` protocol that other engines can meet."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rgtrain.devices import num_gpus
from rgtrain.vllm_settings import attention_backend, vllm_environment


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; lengths in tokens, temperature 0 is greedy."""

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    num_samples: int = 1


@dataclass(frozen=True)
class Completion:
    """One answer of a model. `finish_reason` is "length" where it was cut off at `max_tokens`."""

    text: str
    num_tokens: int
    finish_reason: str | None


class Engine(Protocol):
    """Anything that completes prompts."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.num_samples` completions of each prompt (token ids), in the prompts' order."""
        ...


class VllmEngine:
    """vLLM in this process, on the GPU where there is one, else on the CPU. Starting it takes half a minute and more.

    `max_model_len`: the longest prompt plus completion it will be given; memory is set aside for no more than that.
    `seed`: of the sampling; the same prompts in the same order then give the same completions on the same machine.
    """

    def __init__(self, model_path: str, *, dtype: str, max_model_len: int, seed: int):
        on_cpu = _set_environment()
        if on_cpu:
            _silence_exit()
        # Imported only now: it takes seconds, and vLLM reads its environment variables while it is imported.
        from vllm import LLM

        # On the CPU vLLM's own blocks of 128 tokens are longer than most prompts, and only whole blocks are cached.
        settings: dict[str, Any] = {"enforce_eager": True, "block_size": 32} if on_cpu else {}
        self._llm = LLM(
            model_path,
            dtype=dtype,
            max_model_len=max_model_len,
            seed=seed,
            enable_prefix_caching=True,
            attention_backend=attention_backend(),
            **settings,
        )

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """See Engine. All prompts are submitted at once; a progress bar goes to stderr."""
        from vllm import SamplingParams

        params = SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
        )
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=True)
        return [
            [Completion(answer.text, len(answer.token_ids), answer.finish_reason) for answer in output.outputs]
            for output in outputs
        ]


def _set_environment() -> bool:
    """Set vLLM's environment variables, where the user has not; whether it will run on the CPU."""
    on_cpu = num_gpus() == 0
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # A second process takes seconds to start and has to be sent every token; on one GPU it generated no faster.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **vllm_environment(),
    }
    if on_cpu:
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Its own binding takes whole cores, which other processes may be using.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    return on_cpu


def _silence_exit() -> None:
    # Triton, which the CPU build loads and can't use, ends the process with 40 lines about leaked objects.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
