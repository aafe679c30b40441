"""Merge Megatron checkpoints, which only Megatron can read, with verl's own merger."""

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
def merged_by_verl(checkpoint: Checkpoint, *, scratch: Path, trust: bool = False) -> Iterator[Path]:
    """Merge a Megatron checkpoint to safetensors, unless verl has saved it in that form too.

    Args:
        checkpoint: A Megatron checkpoint.
        scratch: The folder for the temporary result.
        trust: Whether code in the checkpoint's files may run. The merger runs it.

    Yields:
        A folder with the weights as safetensors.

    Raises:
        ConfigError: The checkpoint is not trusted, Megatron isn't installed, or the merger fails.
    """
    if holds_safetensors(checkpoint.hugging_face_folder) and not (checkpoint.folder / "model" / "dist_ckpt").exists():
        yield checkpoint.hugging_face_folder
        return
    if importlib.util.find_spec("megatron") is None:
        raise ConfigError(
            f"{str(checkpoint.folder)!r} is a Megatron checkpoint, which can be merged only with megatron-core: export "
            "it on the machine that trained it, or install megatron-core"
        )
    if not trust:
        raise ConfigError(
            f"{str(checkpoint.folder)!r} is a Megatron checkpoint, and merging it runs code in its files: export it "
            "with --trust-checkpoint if you trust its author"
        )
    with tempfile.TemporaryDirectory(prefix=".megatron-", dir=scratch) as target:
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
            last = printable((done.stdout.strip().splitlines() or ["it printed no message"])[-1], max_characters=300)
            raise ConfigError(f"verl.model_merger couldn't merge {str(checkpoint.folder)!r}: {last}")
        yield Path(target)
