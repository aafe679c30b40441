"""Options, prompts, timing and result files that the sides of the comparison share."""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import write_record


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter): ...


def argument_parser(description: str | None, *, with_prompts: bool = True) -> argparse.ArgumentParser:
    """Return a parser of the options that sides take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    if with_prompts:
        parser.add_argument("--prompts", required=True, type=Path, help="JSON: a list of lists of token ids")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8, help="samples per prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="maximum length of a response")
    parser.add_argument("--steps", type=int, default=13, help="steps including the warm-up")
    parser.add_argument("--warmup", type=int, default=3, help="steps left out of the medians")
    parser.add_argument("--ignore-eos", action="store_true", help="make all responses --max-tokens long")
    parser.add_argument("--out", required=True, type=Path, help="the JSON file to write")
    return parser


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of sides that do not choose these settings themselves."""
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations to save memory")
    parser.add_argument("--vllm-memory", type=float, default=0.4, help="vLLM's share of the GPU's memory")


def sampler_without_flashinfer() -> None:
    """Let vLLM use its own sampler if flashinfer is missing. Call this before importing vllm."""
    if importlib.util.find_spec("flashinfer") is None:
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")


def read_prompts(path: Path) -> list[list[int]]:
    return json.loads(path.read_text(encoding="utf-8"))


def slice_of(prompts: Sequence[list[int]], step: int, size: int) -> list[list[int]]:
    """Return the prompts of a step; they repeat after the last."""
    return [prompts[i % len(prompts)] for i in range(step * size, (step + 1) * size)]


def update_flops(shape: Mapping[str, Any], prompt_lengths: Sequence[float], response_lengths: Sequence[float]) -> float:
    """Return the number of operations of an update, without padding and recomputation.

    The formula is 6 * (body * tokens + head * response tokens) + 12 * layers * width * sum(length^2) / 2. `body` counts
    the weights of all matrices except the embedding and lm_head. `head` counts the weights of lm_head, which is needed
    only at response tokens. `width` is heads * head_dim. Each weight takes two operations forward and four backward.
    Attention takes 4 * width * length^2 operations forward and twice as many backward, and causality halves both.

    Args:
        shape: `model_shape` of a Llama or Qwen model.
        prompt_lengths: Tokens of each sequence's prompt.
        response_lengths: Tokens of each sequence's response.

    Returns:
        The number of operations.
    """
    hidden, heads, layers = (shape[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = shape.get("head_dim") or hidden // heads
    width, kv_width = heads * head_dim, shape["num_key_value_heads"] * head_dim
    body = layers * hidden * (2 * width + 2 * kv_width + 3 * shape["intermediate_size"])
    lengths = [prompt + response for prompt, response in zip(prompt_lengths, response_lengths, strict=True)]
    dense = body * sum(lengths) + hidden * shape["vocab_size"] * sum(response_lengths)
    return 6 * dense + 6 * layers * width * sum(length**2 for length in lengths)


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes, including its work on the GPU."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_result(arguments: argparse.Namespace, records: Sequence[Mapping[str, Any]], **others: Any) -> None:
    """Write the measurements to --out: all steps by name, and the medians of those after the warm-up."""
    names = dict.fromkeys(name for record in records for name in record)
    per_step = {name: [record.get(name) for record in records] for name in names}
    measured = {name: [v for v in values[arguments.warmup :] if v is not None] for name, values in per_step.items()}
    medians = {name: median(values) for name, values in measured.items() if values}
    write_record(
        arguments.out,
        packages=("trl", "accelerate", "liger-kernel"),
        settings=vars(arguments) | {"model_shape": model_shape(arguments.model)},
        raw={"per_step": per_step},
        derived={"medians": medians, **others},
    )
    print(json.dumps(medians, indent=1))


def model_shape(folder: str | Path) -> dict[str, Any]:
    """Return the sizes of a model that `update_flops` needs."""
    config = json.loads((Path(folder) / "config.json").read_text())
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim")
    return {name: config.get(name) for name in (*names, "intermediate_size", "vocab_size")}
