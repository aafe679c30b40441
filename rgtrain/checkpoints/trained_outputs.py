"""The outputs of a model in training on a few sequences, saved with its checkpoint to verify exports."""

import dataclasses
import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.untrusted_files import read_json_object
from rgtrain.errors import ConfigError

TRAINED_OUTPUTS = "trained_outputs.json"
DTYPES = ("float32", "bfloat16", "float16")
LOG_PROBS, VALUES = "log_probs", "values"
# 124 outputs: each token but the first of a sequence has one.
_LENGTHS = (41, 25, 34, 28)
_MAX_BYTES = 2**20
_MAX_TOKENS = 10_000


@dataclass(frozen=True)
class TrainedOutputs:
    """Outputs of a model in training.

    Attributes:
        quantity: LOG_PROBS for a language model, VALUES for a critic.
        dtype: The dtype of the model's computations, one of DTYPES.
        sequences: The token ids of each sequence.
        outputs: For each sequence, the log-probability of each token but the first, or the value before it.
        adapter_scales: The number of modules by the scale of their adapter, as text. Empty without an adapter.
    """

    quantity: str
    dtype: str
    sequences: Sequence[Sequence[int]]
    outputs: Sequence[Sequence[float]]
    adapter_scales: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """Write the file into `folder`, which is part of an unpublished checkpoint."""
        (folder / TRAINED_OUTPUTS).write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")


def read_trained_outputs(folder: Path) -> TrainedOutputs | None:
    """Read the outputs saved with the model in `folder`.

    Args:
        folder: The folder of the rank files.

    Returns:
        The outputs; None if there is no file.

    Raises:
        ConfigError: The file is damaged.
    """
    path = folder / TRAINED_OUTPUTS
    try:
        content = read_json_object(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        found = TrainedOutputs(**content)
        is_valid = _is_valid(found)
    except (TypeError, ValueError, AttributeError):
        is_valid = False
    if not is_valid:
        raise ConfigError(
            f"{str(path)!r} holds no valid outputs of the model in training: restore it, or delete it for a "
            "weaker check"
        )
    return found


def _is_valid(found: TrainedOutputs) -> bool:
    values = [value for outputs in found.outputs for value in outputs]
    tokens = [token for sequence in found.sequences for token in sequence]
    return (
        found.quantity in (LOG_PROBS, VALUES)
        and found.dtype in DTYPES
        and 0 < len(values) < len(tokens) <= _MAX_TOKENS
        and all(type(value) is float and math.isfinite(value) for value in values)
        and all(type(token) is int and token >= 0 for token in tokens)
        and [len(sequence) - 1 for sequence in found.sequences] == [len(outputs) for outputs in found.outputs]
        and all(type(number) is int for number in found.adapter_scales.values())
    )


def probe_sequences(config: Mapping[str, Any], *, vocab_size: int) -> list[list[int]]:
    """Return fixed sequences of random tokens on which two models of the same kind are compared.

    Args:
        config: The model's config. Its special tokens are left out, because those of images need an image.
        vocab_size: The number of tokens.

    Returns:
        Sequences of token ids.
    """
    special = _special_tokens(config)
    allowed = [token for token in range(vocab_size) if token not in special] or list(range(vocab_size))
    generator = random.Random(0)
    return [[generator.choice(allowed) for _ in range(length)] for length in _LENGTHS]


def _special_tokens(config: Mapping[str, Any]) -> Collection[int]:
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= set(_special_tokens(value))
        elif str(name).endswith(("token_id", "token_index")):
            found |= {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}
    return found


def count_scales(scales: Sequence[float]) -> dict[str, int]:
    """Return the number of modules by the scale of their adapter, in the form of `TrainedOutputs.adapter_scales`."""
    texts = [f"{scale:.9g}" for scale in scales]
    return {text: texts.count(text) for text in sorted(set(texts), key=float)}
