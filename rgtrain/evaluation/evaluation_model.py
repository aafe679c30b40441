"""The model of an evaluation, whatever form it is given in: as a folder that vLLM loads, or behind an endpoint."""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.untrusted_files import read_json_object
from rgtrain.errors import ConfigError
from rgtrain.evaluation.vllm_engine import ADAPTER_RANKS
from rgtrain.paths import PROJECT_ROOT

ENDPOINT = "openai://"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_WEIGHTS = ("*.safetensors", "*.bin")
_FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_MOST_CONFIG_BYTES = 4 * 2**20
_SHARDS = ("model_world_size_*.pt", "actor/model_world_size_*.pt", "global_step_*", "checkpoints/global_step_*")


@dataclass(frozen=True)
class EvaluatedModel:
    """A model on this machine: a folder in Hugging Face form and, over it, perhaps the folder of a LoRA adapter."""

    folder: Path
    adapter: Path | None = None
    adapter_rank: int = 0

    def digest(self) -> str:
        """32 hex digits that two models share exactly if the bytes of their weights and configurations are equal."""
        folders = [self.folder] if self.adapter is None else [self.folder, self.adapter]
        files = [
            file
            for folder in folders
            for pattern in (*_WEIGHTS, "config.json", _ADAPTER_CONFIG)
            for file in sorted(folder.glob(pattern))
        ]
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_file_digest, files))
        told = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
        return hashlib.sha256(told.encode()).hexdigest()[:32]


def find_model(given: str) -> str:
    """`given` where it is a hub name or an endpoint's model, else the folder it names from here or the repository.

    Raises ConfigError where there is no such folder, or where it holds no model, adapter or checkpoint.
    """
    if given.startswith(ENDPOINT):
        if not given.removeprefix(ENDPOINT).strip():
            raise ConfigError(f"model_path {given!r} names no model; write {ENDPOINT}NAME")
        return given
    for folder in (Path(given).expanduser(), PROJECT_ROOT / given):
        if folder.is_dir():
            if not (_is_checkpoint(folder) or (folder / _ADAPTER_CONFIG).is_file()):
                _check_model_folder(folder)
            return str(folder.resolve())
    # A path that starts in a folder of ours is a missing model, not a hub name.
    starts_here = any((base / Path(given).parts[0]).is_dir() for base in (Path.cwd(), PROJECT_ROOT))
    if not _HUB_NAME.fullmatch(given) or starts_here:
        raise ConfigError(
            f"model_path {given!r} does not exist; give a model folder in Hugging Face form, a training checkpoint, a "
            f"hub name such as Qwen/Qwen2.5-3B-Instruct, or {ENDPOINT}NAME with a base_url "
            "(`bash train.sh setup` prepares models/SmolLM2-135M-Instruct)"
        )
    return given


def short_name(model_path: str) -> str:
    """What results are filed under: the last part of the path that tells models apart."""
    parts = [part for part in Path(model_path.removeprefix(ENDPOINT)).parts if part != "actor"]
    return re.sub(r"[^\w.-]", "_", parts[-1])


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file of a model or an adapter, which others may have made. Raises ConfigError."""
    # A link may lead anywhere: vLLM follows it too.
    return read_json_object(path, max_bytes=_MOST_CONFIG_BYTES, inside=Path(path.absolute().anchor))


@contextmanager
def opened_model(model_path: str, *, base_model: str | None = None) -> Iterator[EvaluatedModel]:
    """The model at `model_path`, fetched from the hub or exported to a temporary folder where need be.

    A folder with an adapter_config.json is a LoRA adapter over `base_model`, or over the model that it names itself.
    Raises ConfigError where any of that fails.
    """
    folder = Path(model_path)
    if folder.is_dir() and _is_checkpoint(folder):
        with tempfile.TemporaryDirectory(prefix="rgtrain-exported-") as temporary:
            yield EvaluatedModel(_export(folder, Path(temporary) / "model"))
        return
    folder = folder if folder.is_dir() else _fetch(model_path)
    if (folder / _ADAPTER_CONFIG).is_file():
        yield _with_base(folder, base_model)
    elif base_model is not None:
        raise ConfigError(f"base_model is for LoRA adapters, but {model_path!r} has no {_ADAPTER_CONFIG}; leave it out")
    else:
        yield EvaluatedModel(folder)


def _export(checkpoint: Path, output: Path) -> Path:
    from rgtrain.checkpoints.export import export  # loads torch

    print(f"exporting the checkpoint {checkpoint}", flush=True)
    return export(checkpoint, output)


def _with_base(adapter: Path, base_model: str | None) -> EvaluatedModel:
    config = read_model_json(adapter / _ADAPTER_CONFIG)
    _check_adapter(adapter, config)
    base = base_model or config.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"the adapter {str(adapter)!r} does not name its base model; set base_model")
    found = find_model(base)
    folder = Path(found) if Path(found).is_dir() else _fetch(found)
    _check_model_folder(folder)
    return EvaluatedModel(folder, adapter, config["r"])


def _check_adapter(adapter: Path, config: dict[str, Any]) -> None:
    unusable = [key for key in ("modules_to_save", "use_dora") if config.get(key)]
    if config.get("peft_type") != "LORA":
        unusable.append(f"peft_type {config.get('peft_type')}")
    if not isinstance(config.get("r"), int) or not 1 <= config["r"] <= ADAPTER_RANKS[-1]:
        unusable.append(f"r {config.get('r')}")
    if unusable:
        raise ConfigError(
            f"vLLM can't load the adapter {str(adapter)!r} because of its {', '.join(unusable)}; "
            "merge it into its base model (peft's merge_and_unload) and evaluate that"
        )
    if not any(next(adapter.glob(pattern), None) for pattern in _WEIGHTS):
        raise ConfigError(f"the adapter {str(adapter)!r} has no weights (adapter_model.safetensors)")


def _fetch(hub_name: str) -> Path:
    """The folder of a hub model, downloaded unless it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(hub_name, allow_patterns=_FETCHED))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"cannot fetch model_path {hub_name!r}, which is no folder here and must then be a hub name that this "
            f"machine can reach: {reason:.300}"
        ) from error


def _is_checkpoint(folder: Path) -> bool:
    return not (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in _SHARDS)


def _check_model_folder(folder: Path) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        missing.append("weights (*.safetensors)")
    if missing:
        raise ConfigError(
            f"model_path {str(folder)!r} is no model folder: it lacks {' and '.join(missing)}; give one in Hugging "
            "Face form, a LoRA adapter or a training checkpoint"
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
