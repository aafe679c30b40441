"""Writing a model folder: tensors streamed into safetensors files, and a folder that appears whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from rgtrain.checkpoints.shards import SplitTensor
from rgtrain.errors import ConfigError

MAX_SHARD_BYTES = 5_000_000_000

# The names of the safetensors format: https://huggingface.co/docs/safetensors#format
FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def written_dtype(tensor: SplitTensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype `tensor` is written in: `dtype` where one is asked for and the tensor is of floats, else its own."""
    kept = dtype is None or not tensor.dtype.is_floating_point
    chosen = tensor.dtype if kept else dtype
    if chosen not in FORMAT_NAMES:
        allowed = ", ".join(str(known) for known in FORMAT_NAMES)
        raise ConfigError(f"tensor {tensor.name!r} is {chosen}, which can't be written: allowed are {allowed}")
    return chosen


def write_tensors(
    folder: Path,
    tensors: Iterable[SplitTensor],
    *,
    dtype: torch.dtype | None,
    label: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `tensors` to safetensors in `folder`: one file, or several and an index where it exceeds `max_shard_bytes`.

    One tensor at a time is in memory. Progress in bytes is shown under `label` where stderr is a terminal.
    Raises ConfigError for a tensor with NaN or infinite values.
    """
    # Wider types first, so that every tensor lies aligned to its type.
    ordered = sorted(tensors, key=lambda tensor: -written_dtype(tensor, dtype).itemsize)
    num_bytes = {tensor.name: tensor.num_values * written_dtype(tensor, dtype).itemsize for tensor in ordered}
    files = _split_into_files(ordered, num_bytes, max_shard_bytes)
    weight_map = {}
    with tqdm(total=sum(num_bytes.values()), unit="B", unit_scale=True, desc=label, disable=None) as progress:
        for number, members in enumerate(files, start=1):
            several = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
            path = folder / f"model{several}.safetensors"
            _write_file(path, members, dtype=dtype, progress=progress)
            weight_map |= {tensor.name: path.name for tensor in members}
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _split_into_files(
    tensors: list[SplitTensor], num_bytes: Mapping[str, int], max_shard_bytes: int
) -> list[list[SplitTensor]]:
    files: list[list[SplitTensor]] = [[]]
    free = max_shard_bytes
    for tensor in tensors:
        if files[-1] and num_bytes[tensor.name] > free:
            files.append([])
            free = max_shard_bytes
        files[-1].append(tensor)
        free -= num_bytes[tensor.name]
    return files


def _write_file(path: Path, tensors: list[SplitTensor], *, dtype: torch.dtype | None, progress: tqdm) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        target = written_dtype(tensor, dtype)
        start, end = end, end + tensor.num_values * target.itemsize
        header[tensor.name] = {"dtype": FORMAT_NAMES[target], "shape": tensor.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            data = _finite(tensor, written_dtype(tensor, dtype))
            file.write(data.reshape(-1).view(torch.uint8).numpy())
            progress.update(data.nbytes)


def _finite(tensor: SplitTensor, dtype: torch.dtype) -> Tensor:
    whole = tensor.assemble()
    data = whole.to(dtype)
    if not dtype.is_floating_point or not data.numel():
        return data
    # The extremes carry any NaN, and need no copy of the tensor as isfinite does.
    if all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(data)):
        return data
    num_nan, num_infinite = int(whole.isnan().sum()), int(whole.isinf().sum())
    if num_nan or num_infinite:
        raise ConfigError(
            f"tensor {tensor.name!r} holds {num_nan} NaN and {num_infinite} infinite of {whole.numel()} values: "
            "the training diverged; export an earlier step"
        )
    raise ConfigError(f"tensor {tensor.name!r} holds values too large for {dtype}: export as bf16 or fp32")


def check_free(output_dir: Path) -> None:
    """Raises ConfigError unless `output_dir` is new or an empty folder."""
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return
    if output_dir.exists() or output_dir.is_symlink():
        kind = "is not empty" if output_dir.is_dir() else "is no folder"
        raise ConfigError(f"the output {str(output_dir)!r} {kind}: name a new folder, or remove it first")


@contextmanager
def complete_folder(output_dir: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `output_dir` once the block ends without an error, and else is removed.

    Raises ConfigError where `output_dir` can't be made or is in use, before or after the block.
    """
    check_free(output_dir)
    output_dir = output_dir.absolute()
    # On the output's file system, so that one rename moves it; missing parents are made only once it is complete.
    home = next(parent for parent in output_dir.parents if parent.exists())
    staging = home / f".{output_dir.name}.{secrets.token_hex(4)}.partial"
    try:
        staging.mkdir()
    except OSError as error:
        raise ConfigError(f"can't write to {str(home)!r} ({error.strerror}): name another output folder") from None
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            _flush(path)
        _move(staging, output_dir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _move(staging: Path, output_dir: Path) -> None:
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(output_dir)
    except OSError as error:
        raise ConfigError(
            f"the output {str(output_dir)!r} was taken during the export ({error.strerror}): name another folder"
        ) from None
    _flush(output_dir.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
