"""Megatron's checkpoints, which only Megatron reads: verl's own merger puts them together."""

import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoConfig

from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.safetensors_reader import holds_safetensors
from rgtrain.checkpoints.untrusted_files import printable
from rgtrain.errors import ConfigError

logger = logging.getLogger(__name__)


@contextmanager
def merged_by_verl(checkpoint: Checkpoint, *, beside: Path, trust: bool = False) -> Iterator[Path]:
    """Yields a folder with the checkpoint's weights as safetensors; one that was made for it lies in `beside`.

    Raises ConfigError unless `trust`, as the merger runs code in the checkpoint's files, if Megatron isn't installed,
    or if the merger fails, with its last line.
    """
    if holds_safetensors(checkpoint.hugging_face_folder) and not (checkpoint.folder / "model" / "dist_ckpt").exists():
        yield checkpoint.hugging_face_folder
        return
    if importlib.util.find_spec("megatron") is None:
        raise ConfigError(
            f"{str(checkpoint.folder)!r} is a Megatron checkpoint, which verl.model_merger puts together with "
            "megatron-core: export it where the run was trained, or install megatron-core"
        )
    if not trust:
        raise ConfigError(
            f"{str(checkpoint.folder)!r} is a Megatron checkpoint: verl.model_merger, which puts it together, runs "
            "code that its files bring. If you trust who wrote it, export it with --trust-checkpoint"
        )
    with tempfile.TemporaryDirectory(prefix=".megatron-", dir=beside) as target:
        options = ["--backend", "megatron", "--local_dir", str(checkpoint.folder), "--target_dir", target]
        config = AutoConfig.from_pretrained(checkpoint.hugging_face_folder, trust_remote_code=False)
        if getattr(config, "tie_word_embeddings", False):
            options.append("--tie-word-embedding")
        if checkpoint.folder.resolve().name == "critic":
            options.append("--is-value-model")
        command = [sys.executable, "-m", "verl.model_merger", "merge", *options]
        logger.info("%s", " ".join(command))
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode or not holds_safetensors(Path(target)):
            last = printable((done.stdout.strip().splitlines() or ["it said nothing"])[-1], most=300)
            raise ConfigError(f"verl.model_merger couldn't merge {str(checkpoint.folder)!r}: {last}")
        yield Path(target)
