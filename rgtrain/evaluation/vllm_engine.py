"""vLLM in this process."""

import atexit
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rgtrain.evaluation.engine_interface import Completion, Prompt, Sampling
from rgtrain.evaluation.evaluation_progress import ACTIVITY
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.machine.devices import num_gpus
from rgtrain.machine.vllm_settings import attention_backend, vllm_environment


@dataclass(frozen=True)
class VllmSettings:
    """What a VllmEngine is started with.

    max_model_len: the longest prompt plus completion it will be given; memory is set aside for no more than that.
    seed: of the sampling; the same prompts in the same order then give the same completions on the same machine.
    adapter, adapter_rank: the folder of a LoRA adapter over the model, and its rank; None and 0 without one.
    """

    model: str
    dtype: str
    max_model_len: int
    seed: int
    tensor_parallel_size: int = 1
    adapter: str | None = None
    adapter_rank: int = 0


class VllmEngine:
    """vLLM in this process, on the GPUs where there are some, else on the CPU. Starting it may take a minute.

    `llm` is vLLM's own LLM.
    """

    def __init__(self, settings: VllmSettings):
        on_cpu = _set_environment()
        if on_cpu:
            _silence_exit()
        # Imported only now: it takes seconds, and vLLM reads its environment variables while it is imported.
        from vllm import LLM

        self._adapter = settings.adapter
        self.llm = LLM(
            settings.model,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            seed=settings.seed,
            tensor_parallel_size=settings.tensor_parallel_size,
            enable_prefix_caching=True,
            attention_backend=attention_backend(),
            **(_CPU_SETTINGS if on_cpu else _GPU_SETTINGS),
            **_adapter_settings(settings),
        )

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """See Engine. All prompts are submitted at once; completions of one prompt come together."""
        positions = {request: position for position, request in enumerate(self._submit(prompts, sampling))}
        engine = self.llm.llm_engine
        # What LLM.generate does too, but that returns nothing before everything is there.
        while engine.has_unfinished_requests():
            STOP.check()
            outputs = engine.step()
            ACTIVITY.moved()
            for output in outputs:
                if output.finished:
                    for answer in output.outputs:
                        completion = Completion(answer.text, len(answer.token_ids), answer.finish_reason)
                        yield positions[output.request_id], completion

    def close(self) -> None:
        """See Engine."""
        del self.llm

    def _submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
        """Hand all prompts to vLLM; the names that its outputs will have, in order."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        params = [
            SamplingParams(
                n=prompt.num_samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
            )
            for prompt in prompts
        ]
        token_ids = [prompt.token_ids for prompt in prompts if prompt.token_ids is not None]
        if len(token_ids) < len(prompts):
            raise ValueError("vLLM in this process is given token ids: render the prompts first")
        names = self.llm.enqueue(
            [{"prompt_token_ids": list(ids)} for ids in token_ids],
            params,
            lora_request=LoRARequest("adapter", 1, self._adapter) if self._adapter else None,
            use_tqdm=False,
        )
        # vLLM appends "-" and random letters for its own use.
        return [name.partition("-")[0] for name in names]


# vLLM's own blocks of 128 tokens are longer than most prompts, and only whole blocks are cached.
_CPU_SETTINGS: dict[str, Any] = {"enforce_eager": True, "block_size": 32}
# Whole decoding steps as CUDA graphs, and vLLM's own fused kernels for the rest: compiling would take a minute.
_GPU_SETTINGS: dict[str, Any] = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}

# vLLM reserves memory for a maximal rank, and takes these only.
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def _adapter_settings(settings: VllmSettings) -> dict[str, Any]:
    if not settings.adapter:
        return {}
    return {"enable_lora": True, "max_lora_rank": min(rank for rank in ADAPTER_RANKS if rank >= settings.adapter_rank)}


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
