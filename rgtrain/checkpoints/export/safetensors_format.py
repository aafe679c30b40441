"""Write tensors to safetensors files in a stream.

The format is specified at https://huggingface.co/docs/safetensors#format.
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from rgtrain.checkpoints.shards.tensors import (
    DTYPES_BY_NAME,
    TensorSource,
    num_values,
    read_blocks,
    single_torch_thread,
)
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.errors import ConfigError

PENDING_BLOCKS = 8
_FORMAT_NAMES = {dtype: name for name, dtype in DTYPES_BY_NAME.items()}


def written_dtype(tensor: TensorSource, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype in which `tensor` is written: `dtype` if given and `tensor` has floats, else its dtype."""
    kept = dtype is None or not tensor.dtype.is_floating_point
    chosen = tensor.dtype if kept else dtype
    if chosen not in _FORMAT_NAMES:
        allowed = ", ".join(str(known) for known in _FORMAT_NAMES)
        raise ConfigError(f"tensor {tensor.name!r} has dtype {chosen}, which can't be written; allowed are {allowed}")
    return chosen


def written_bytes(tensor: TensorSource, dtype: torch.dtype | None) -> int:
    """Return the number of bytes that `tensor` takes in the file."""
    return num_values(tensor) * written_dtype(tensor, dtype).itemsize


def write_tensors(
    folder: Path,
    tensors: Mapping[str, TensorSource],
    *,
    dtype: torch.dtype | None,
    label: str,
    stem: str = "model",
    max_shard_bytes: int,
    progress: ExportProgress,
) -> None:
    """Write tensors to one safetensors file, or to several with an index, with only a few blocks in memory at a time.

    If stderr is a terminal, a progress bar counts bytes.

    Args:
        folder: The folder for the files.
        tensors: The tensors by name. ConfigError is raised for NaN or infinite values.
        dtype: The dtype for tensors of floats; by default, each keeps its dtype.
        label: The label of the progress bar.
        stem: The name of the files without number and suffix.
        max_shard_bytes: The maximum size of a file, except for one with a single larger tensor.
        progress: Updated with each block.
    """
    # Write wider types first, so that each tensor is aligned to its type.
    ordered = sorted(tensors.items(), key=lambda item: -written_dtype(item[1], dtype).itemsize)
    num_bytes = {name: written_bytes(tensor, dtype) for name, tensor in ordered}
    files = _split_into_files(num_bytes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    total = sum(num_bytes.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=None) as bar, single_torch_thread():
        for number, names in enumerate(files, start=1):
            several = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
            path = folder / f"{stem}{several}.safetensors"
            _write_file(path, {name: tensors[name] for name in names}, dtype=dtype, bar=bar, progress=progress)
            weight_map |= {name: path.name for name in names}
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _split_into_files(num_bytes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    free = max_shard_bytes
    for name, size in num_bytes.items():
        if files[-1] and size > free:
            files.append([])
            free = max_shard_bytes
        files[-1].append(name)
        free -= size
    return files


def _write_file(
    path: Path, tensors: Mapping[str, TensorSource], *, dtype: torch.dtype | None, bar: tqdm, progress: ExportProgress
) -> None:
    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:
        file.write(_header(tensors, dtype))
        pending: deque[Future[int]] = deque()
        for name, tensor in tensors.items():
            progress.moved(f"tensor {name!r}")
            for block in finite_blocks(tensor, written_dtype(tensor, dtype)):
                progress.moved(f"tensor {name!r}")
                # A thread writes blocks while this one reads and checks the next.
                pending.append(writer.submit(file.write, block.reshape(-1).view(torch.uint8).numpy().data))
                if len(pending) > PENDING_BLOCKS:
                    bar.update(pending.popleft().result())
        bar.update(sum(written.result() for written in pending))


def _header(tensors: Mapping[str, TensorSource], dtype: torch.dtype | None) -> bytes:
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + written_bytes(tensor, dtype)
        format_name = _FORMAT_NAMES[written_dtype(tensor, dtype)]
        header[name] = {"dtype": format_name, "shape": tensor.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def finite_blocks(tensor: TensorSource, dtype: torch.dtype) -> Iterable[Tensor]:
    """Yield the blocks of `tensor` in `dtype`. Raise ConfigError at the first with NaN or infinite values."""
    for block in read_blocks(tensor):
        converted = block.to(dtype)
        if converted.numel() and dtype.is_floating_point and not _is_finite(converted):
            raise _not_finite_error(tensor, dtype)
        yield converted


def _is_finite(block: Tensor) -> bool:
    # The extremes are NaN if any value is, and unlike isfinite they need no copy of the block.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(block))


def _not_finite_error(tensor: TensorSource, dtype: torch.dtype) -> ConfigError:
    num_nan = num_infinite = 0
    for block in read_blocks(tensor):
        num_nan, num_infinite = num_nan + int(block.isnan().sum()), num_infinite + int(block.isinf().sum())
    if num_nan or num_infinite:
        return ConfigError(
            f"tensor {tensor.name!r} holds {num_nan} NaN and {num_infinite} infinite of {num_values(tensor)} values, "
            "so the training has diverged: export an earlier step"
        )
    return ConfigError(f"tensor {tensor.name!r} holds values too large for {dtype}: export as bf16 or fp32")
