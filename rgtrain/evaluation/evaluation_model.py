"""The model of an evaluation: a model folder, hub name, LoRA adapter or checkpoint, or a model behind an endpoint."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.adapter_config import fields_ignored_by_vllm
from rgtrain.checkpoints.checkpoint_lookup import find_checkpoint
from rgtrain.checkpoints.untrusted_files import read_json_object
from rgtrain.errors import ConfigError
from rgtrain.evaluation.temporary_models import temporary_model_folder
from rgtrain.evaluation.vllm_engine import ADAPTER_RANKS
from rgtrain.models.model_lookup import ADAPTER_CONFIG, WEIGHTS, fetch_model, is_hub_name, missing_parts
from rgtrain.paths import PROJECT_ROOT

ENDPOINT = "openai://"
_MOST_CONFIG_BYTES = 4 * 2**20
_SHARDS = ("model_world_size_*.pt", "actor/model_world_size_*.pt", "global_step_*", "checkpoints/global_step_*")


@dataclass(frozen=True)
class EvaluatedModel:
    """A model on this machine.

    Attributes:
        folder: The folder of the model, or of the adapter's base model, in Hugging Face format.
        adapter: The folder of a LoRA adapter, if there is one.
        adapter_rank: The adapter's rank; 0 without an adapter.
    """

    folder: Path
    adapter: Path | None = None
    adapter_rank: int = 0

    def digest(self) -> str:
        """Return 32 hex digits, which are equal for two models exactly if their weights and configurations are."""
        folders = [self.folder] if self.adapter is None else [self.folder, self.adapter]
        files = [
            file
            for folder in folders
            for pattern in (*WEIGHTS, "config.json", ADAPTER_CONFIG)
            for file in sorted(folder.glob(pattern))
        ]
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_file_digest, files))
        listing = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
        return hashlib.sha256(listing.encode()).hexdigest()[:32]


def find_model(given: str) -> str:
    """Check the `model_path` of an evaluation and make a folder's path absolute.

    Args:
        given: A hub name, an endpoint's model, or a folder. A folder is looked up first from the current folder, then
            from the repository.

    Returns:
        The absolute path of the folder; a hub name or an endpoint's model is returned as it is.

    Raises:
        ConfigError: There is no such folder, or it holds no model, adapter or checkpoint.
    """
    if given.startswith(ENDPOINT):
        if not given.removeprefix(ENDPOINT).strip():
            raise ConfigError(f"model_path {given!r} names no model; write {ENDPOINT}NAME")
        return given
    for folder in (Path(given).expanduser(), PROJECT_ROOT / given):
        if folder.is_dir():
            if not (_is_checkpoint(folder) or (folder / ADAPTER_CONFIG).is_file()):
                _check_model_folder(folder)
            return str(folder.resolve())
    if not is_hub_name(given):
        raise ConfigError(
            f"model_path {given!r} does not exist; give a model folder in Hugging Face format, a training checkpoint, "
            f"a hub name such as Qwen/Qwen2.5-3B-Instruct, or {ENDPOINT}NAME with a base_url "
            "(`bash train.sh setup` prepares models/SmolLM2-135M-Instruct)"
        )
    return given


def short_name(model_path: str) -> str:
    """Return the last distinctive part of a model's path, for the name of its results folder."""
    parts = [part for part in Path(model_path.removeprefix(ENDPOINT)).parts if part != "actor"]
    return re.sub(r"[^\w.-]", "_", parts[-1])


def read_model_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model or an adapter, which may come from an untrusted source.

    Args:
        path: The file.

    Returns:
        The mapping in the file.

    Raises:
        ConfigError: The file cannot be read, or does not hold a mapping.
    """
    # Links may lead anywhere, because vLLM follows them too.
    return read_json_object(path, max_bytes=_MOST_CONFIG_BYTES, inside=Path(path.absolute().anchor))


@contextmanager
def opened_model(model_path: str, *, base_model: str | None = None) -> Iterator[EvaluatedModel]:
    """Prepare a model for vLLM. A hub model is downloaded, and a checkpoint is exported to a temporary folder.

    Args:
        model_path: A path or hub name, as returned by `find_model`. A folder with an adapter_config.json is a LoRA
            adapter.
        base_model: The adapter's base model; None for the one that the adapter names.

    Yields:
        The model. The temporary folder is removed at the end of the block.

    Raises:
        ConfigError: The model cannot be downloaded, exported or loaded by vLLM, or `base_model` does not apply.
    """
    folder = Path(model_path)
    if folder.is_dir() and _is_checkpoint(folder):
        checkpoint = find_checkpoint(folder)
        num_bytes = sum(path.stat().st_size for path in checkpoint.rank_files)
        with temporary_model_folder(num_bytes=num_bytes) as temporary:
            yield EvaluatedModel(_export(checkpoint.folder, temporary / "model"))
        return
    folder = folder if folder.is_dir() else _fetch(model_path)
    if (folder / ADAPTER_CONFIG).is_file():
        yield _with_base(folder, base_model)
    elif base_model is not None:
        raise ConfigError(f"base_model is for LoRA adapters, but {model_path!r} has no {ADAPTER_CONFIG}; leave it out")
    else:
        yield EvaluatedModel(folder)


def _export(checkpoint: Path, output: Path) -> Path:
    from rgtrain.checkpoints.export import export  # imports torch

    print(f"exporting the checkpoint {checkpoint}", flush=True)
    return export(checkpoint, output)


def _with_base(adapter: Path, base_model: str | None) -> EvaluatedModel:
    config = read_model_json(adapter / ADAPTER_CONFIG)
    _check_adapter(adapter, config)
    base = base_model or config.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"the adapter {str(adapter)!r} does not name its base model; set base_model")
    found = find_model(base)
    folder = Path(found) if Path(found).is_dir() else _fetch(found)
    _check_model_folder(folder)
    return EvaluatedModel(folder, adapter, config["r"])


def _check_adapter(adapter: Path, config: dict[str, Any]) -> None:
    unusable = fields_ignored_by_vllm({"peft_type": None} | config)
    if type(config.get("r")) is not int or not 1 <= config["r"] <= ADAPTER_RANKS[-1]:
        unusable.append(f"r {config.get('r')}")
    if unusable:
        raise ConfigError(
            f"vLLM can't apply the adapter {str(adapter)!r} because of its {', '.join(unusable)}; "
            "merge it into its base model (peft's merge_and_unload) and evaluate that"
        )
    if not any(next(adapter.glob(pattern), None) for pattern in WEIGHTS):
        raise ConfigError(f"the adapter {str(adapter)!r} has no weights (adapter_model.safetensors)")


def _fetch(hub_name: str) -> Path:
    """Return the folder of a hub model, after downloading it unless it is cached."""
    return fetch_model(hub_name, given=f"model_path {hub_name!r}")


def _is_checkpoint(folder: Path) -> bool:
    return not (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in _SHARDS)


def _check_model_folder(folder: Path) -> None:
    if missing := missing_parts(folder):
        raise ConfigError(
            f"model_path {str(folder)!r} is not a model folder because it lacks {' and '.join(missing)}; give a model "
            "folder in Hugging Face format, a LoRA adapter or a training checkpoint"
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
