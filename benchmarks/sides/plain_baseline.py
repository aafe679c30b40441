r"""Measure a GRPO step in plain vLLM and plain torch on one GPU: generation, then passes over the completions.

python benchmarks/sides/plain_baseline.py --model DIR --prompts FILE.json --batch-size 32 --group-size 8 \
    --max-tokens 64 --steps 13 --warmup 3 --micro-batch 64 128 256 --out FILE.json

The file of prompts is a list of lists of token ids. There is no scoring and no weight sync. Sequences are padded, and
each has its own copy of the prompt, so packing or sharing prompts may be faster than this update. All micro-batch sizes
are measured on the same samples.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from common import (
    add_memory_options,
    argument_parser,
    read_prompts,
    sampler_without_flashinfer,
    slice_of,
    timed,
    write_result,
)

# Token ids of the prompt and of the response.
Sample = tuple[list[int], list[int]]
Record = dict[str, float | None]

# Number of logits that are computed at a time, of 4 bytes each and in several copies.
MAX_LOGITS = 2**28


def main() -> None:
    parser = argument_parser(__doc__)
    add_memory_options(parser)
    parser.add_argument(
        "--micro-batch", type=int, nargs="+", default=[256], help="sequences per pass; all sizes are tried"
    )
    arguments = parser.parse_args()
    sampler_without_flashinfer()
    prompts = read_prompts(arguments.prompts)
    from vllm import LLM, SamplingParams

    max_model_len = max(map(len, prompts)) + arguments.max_tokens
    # vLLM starts before torch uses the GPU, because it takes a share of the free memory.
    llm = LLM(arguments.model, gpu_memory_utilization=arguments.vllm_memory, max_model_len=max_model_len)
    sampling = SamplingParams(
        n=arguments.group_size,
        temperature=1,
        max_tokens=arguments.max_tokens,
        ignore_eos=arguments.ignore_eos,
        logprobs=None,
        detokenize=False,
    )
    model, optimizer = load(arguments.model, "cuda", checkpointing=arguments.checkpointing)
    rate = matmul_tflops()
    sizes, records = list(arguments.micro_batch), []
    for step in range(arguments.steps):
        samples, record = generate(llm, sampling, slice_of(prompts, step, arguments.batch_size))
        for size in list(sizes):
            seconds = passes(model, optimizer, samples, size)
            if seconds is None:
                print(f"micro-batches of {size} sequences do not fit into memory", file=sys.stderr)
                sizes.remove(size)
            else:
                record |= {f"log_probs_s/{size}": seconds[0], f"update_s/{size}": seconds[1]}
        if sizes:
            record |= {name: min(record[f"{name}/{size}"] for size in sizes) for name in ("log_probs_s", "update_s")}
            record["step_s"] = record["generate_s"] + record["update_s"]
            record["step_with_log_probs_s"] = record["step_s"] + record["log_probs_s"]
        records.append(record)
        print(f"step {step}: {record}", file=sys.stderr, flush=True)
    write_result(arguments, records, matmul_tflops=rate, micro_batches_that_fit=sizes)


def generate(llm: Any, sampling: Any, prompts: Sequence[list[int]]) -> tuple[list[Sample], Record]:
    # Training changes the weights between steps, so the cache of an earlier step must not be used.
    llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    samples = [
        (prompt, list(one.token_ids)) for prompt, output in zip(prompts, outputs, strict=True) for one in output.outputs
    ]
    num_new_tokens = sum(len(response) for _, response in samples)
    return samples, {
        "generate_s": seconds,
        "num_new_tokens": num_new_tokens,
        "num_prompt_tokens": sum(map(len, prompts)),
        "mean_response_length": num_new_tokens / len(samples),
        "new_tokens_per_s": num_new_tokens / seconds,
    }


def load(folder: str, device: str, *, checkpointing: bool = False) -> tuple[Any, Any]:
    """Return the model and a fused AdamW, both with bf16 values."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", trust_remote_code=False
    ).to(device)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right, with the position and the loss weight of each response token."""

    ids: Any
    rows: Any
    columns: Any
    targets: Any
    weights: Any


def batches_of(samples: Sequence[Sample], size: int, device: Any) -> list[Batch]:
    """Return micro-batches of `size` sequences of similar lengths, the longest first, with random advantages."""
    import torch

    total = sum(len(response) for _, response in samples)
    advantages = torch.randn(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    ordered = sorted(zip(samples, advantages, strict=True), key=lambda pair: -len(pair[0][0]) - len(pair[0][1]))
    batches = []
    for first in range(0, len(ordered), size):
        chosen = ordered[first : first + size]
        # The pads' ids don't matter: no token attends to a later one, and their predictions aren't used.
        length = max(len(prompt) + len(response) for (prompt, response), _ in chosen)
        ids = [prompt + response + [0] * (length - len(prompt) - len(response)) for (prompt, response), _ in chosen]
        places = [
            (row, len(prompt) + i - 1, token, advantage / total)
            for row, ((prompt, response), advantage) in enumerate(chosen)
            for i, token in enumerate(response)
        ]
        batches.append(Batch(*(torch.tensor(part, device=device) for part in (ids, *zip(*places, strict=True)))))
    return batches


def passes(model: Any, optimizer: Any, samples: Sequence[Sample], size: int) -> tuple[float, float] | None:
    """Return the seconds of a pass for log-probabilities and of an update; None if memory is too small."""
    import torch

    batches = batches_of(samples, size, model.device)
    try:
        return timed(lambda: log_probs(model, batches)), timed(lambda: update(model, optimizer, batches))
    except torch.OutOfMemoryError:
        pass
    # The exception held the tensors, so memory is freed only after it.
    optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return None


def log_probs(model: Any, batches: Sequence[Batch]) -> list[Any]:
    """Return the log-probabilities of all response tokens, by micro-batch."""
    import torch

    with torch.no_grad():
        return [
            torch.cat([_log_probs_of(model, *piece[:2]) for piece in _pieces(model, _hidden(model, batch), batch)])
            for batch in batches
        ]


def update(model: Any, optimizer: Any, batches: Sequence[Batch]) -> None:
    """Take one step on the policy gradient loss, -sum of advantage * log-probability (GRPO's loss on policy).

    Each piece of logits is differentiated at once down to the hidden states, so memory holds only one piece.
    """
    import torch

    for batch in batches:
        hidden, gradients = _hidden(model, batch), []
        for piece, targets, weights in _pieces(model, hidden, batch):
            leaf = piece.detach().requires_grad_()
            (-(weights * _log_probs_of(model, leaf, targets)).sum()).backward()
            gradients.append(leaf.grad)
        hidden.backward(torch.cat(gradients))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _hidden(model: Any, batch: Batch) -> Any:
    # Without a mask, attention uses its fastest causal kernel.
    return model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state[batch.rows, batch.columns]


def _pieces(model: Any, hidden: Any, batch: Batch) -> Any:
    length = max(1, MAX_LOGITS // model.config.vocab_size)
    return zip(hidden.split(length), batch.targets.split(length), batch.weights.split(length), strict=True)


def _log_probs_of(model: Any, hidden: Any, targets: Any) -> Any:
    import torch

    return -torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), targets, reduction="none")


def matmul_tflops(size: int = 8192, repeats: int = 20) -> float:
    """Return the median rate of the GPU in a bf16 product of random square matrices, in TFLOP/s."""
    import torch

    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    milliseconds = []
    for _ in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return 2 * size**3 / median(milliseconds[5:]) / 1e9


if __name__ == "__main__":
    main()
