"""What each key of an evaluation file may be."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DTYPES = ("auto", "bfloat16", "float16", "float32")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, *, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _whole(low: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: _is_whole(value, low=low), f"a whole number from {low} up"


def _optional(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    allowed, words = rule
    return lambda value: value is None or allowed(value), f"{words}, or null"


_FLAG = (lambda value: isinstance(value, bool), "true or false")
_MAPPING = (lambda value: isinstance(value, Mapping), "a mapping: {timeout_s: 5}")
_TEXT = (lambda value: isinstance(value, str) and bool(value.strip()), "a text")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_path": _TEXT,
    "max_tokens": _whole(1),
    # vLLM raises values between 0 and 0.01 to 0.01.
    "temperature": (lambda value: _is_number(value) and (value == 0 or value >= 0.01), "0 (greedy) or 0.01 and up"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "developer_prompt": (lambda value: value is None or isinstance(value, str), "a prompt's name or text, or null"),
    "developer_role": _TEXT,
    "num_examples": _whole(0),
    "examples_seed": _whole(0),
    "eval_repeats": _whole(1),
    "seed": _whole(0),
    "max_model_len": _optional(_whole(1)),
    "base_model": _optional(_TEXT),
    "base_url": _optional(_TEXT),
    "endpoint": _MAPPING,
    "tensor_parallel_size": _whole(1),
    "data_parallel_size": _optional(_whole(1)),
    "output_dir": (lambda value: isinstance(value, str | Path) and bool(str(value).strip()), "a folder"),
    "save_metadata": _FLAG,
    "save_full_results": _FLAG,
    "scorer": _MAPPING,
}
KEYS = {*RULES, "categories"}
REQUIRED = ("model_path", "max_tokens", "temperature", "output_dir", "categories")
