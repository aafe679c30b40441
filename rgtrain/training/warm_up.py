"""Background processes that make the start of a run's workers faster."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# Reads the files of all modules that workers import, which is gigabytes from a cold disk.
_IMPORT_WORKER = "import rgtrain.training.worker"
# vLLM imports a model's code in a separate process to find its features, and caches the result on disk.
_INSPECT_MODEL = (
    "import sys; from vllm.config import ModelConfig; ModelConfig(model=sys.argv[1], tokenizer=sys.argv[1])"
)
_PACKAGES = ("torch", "transformers", "ray", "verl", "vllm")


def warm_up(model_path: str) -> None:
    """Start background processes that fill the file cache and vLLM's cache of model features.

    Best effort: nothing waits for them. Each takes as much processor time as a worker's imports, so it is started only
    if its cache is cold.

    Args:
        model_path: The folder or hub name of the model that vLLM will load.
    """
    programs = []
    if not are_in_memory(_bytecode_files()):
        programs.append(_IMPORT_WORKER)
    if not _has_features_of(Path(model_path)):
        programs.append(_INSPECT_MODEL)
    # The processes find this package even if it is not installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    for program in programs:
        # Niced, so that they only use idle processors. If they outlive the run, the clean-up process ends them.
        command = [sys.executable, "-c", f"import os; os.nice(10); {program}", model_path]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)


def are_in_memory(files: Iterable[Path]) -> bool:
    """Return whether the first page of every file is in the page cache, without reading it from the disk.

    Args:
        files: The files to check.

    Returns:
        False also if a file is missing or its file system does not support the check.
    """
    try:
        for file in files:
            with file.open("rb") as opened:
                os.preadv(opened.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        return False
    return True


def _bytecode_files() -> list[Path]:
    """Return a file of each large package that every import of the package reads."""
    specs = [importlib.util.find_spec(name) for name in _PACKAGES]
    return [Path(importlib.util.cache_from_source(spec.origin)) for spec in specs if spec and spec.origin]


def _has_features_of(model: Path) -> bool:
    try:
        [architecture, *_] = json.loads((model / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("VLLM_CACHE_ROOT") or Path(cache, "vllm")).expanduser() / "modelinfos"
    return any(folder.glob(f"*-{architecture}.json"))
