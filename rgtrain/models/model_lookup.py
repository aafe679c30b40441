"""Find a model by its folder or its hub name: on this machine, in the hub's cache, or on the hub within seconds."""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
# Any of these makes a folder that of a tokenizer.
TOKENIZER_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
WEIGHTS = ("*.safetensors", "*.bin")
# tokenizer_config.json holds the template of older models and the special tokens that a template writes.
_TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# The hub answers within this time or counts as unreachable. Name resolution alone may take longer than the request.
_REQUEST_SECONDS, _ANSWER_SECONDS = 5.0, 8.0
_MOST_CONFIG_BYTES = 4 << 20
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class HubAnswer:
    """The hub's answer about a model.

    Attributes:
        config: The content of its config.json, if it can be fetched and has one.
        problem: The reason that it cannot be fetched; None if it can.
        is_final: Whether the problem is the model's, and not that of this machine's network or login.
    """

    config: Mapping[str, Any] | None = None
    problem: str | None = None
    is_final: bool = False


def is_hub_name(given: str) -> bool:
    """Return whether `given` has the form ORG/NAME and does not start with a folder that exists here."""
    if not _HUB_NAME.fullmatch(given) or given.startswith("."):
        return False
    # A path that starts with an existing folder names a missing model, not a model on the hub.
    return not any((base / Path(given).parts[0]).is_dir() for base in (Path.cwd(), PROJECT_ROOT))


def missing_parts(folder: Path) -> list[str]:
    """Return descriptions of the parts that a model's folder lacks: configuration, tokenizer or weights."""
    missing = []
    if not (folder / CONFIG).is_file():
        missing.append(CONFIG)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        missing.append("weights (*.safetensors)")
    return missing or _missing_shards(folder)


def _missing_shards(folder: Path) -> list[str]:
    for name in _INDEXES:
        try:
            shards = set(json.loads((folder / name).read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        # The cache links to files that may be gone.
        absent = sorted(shard for shard in map(str, shards) if not (folder / shard).is_file())
        return [", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")] if absent else []
    return []


def cached_snapshot(name: str) -> Path | None:
    """Return the folder of a complete model or adapter in the hub's cache, or None if there is none.

    The revision `main` of the last download is preferred.
    """
    folders = [folder for folder in _snapshots(name) if not _missing_in_snapshot(folder)]
    return folders[0] if folders else None


def _snapshots(name: str) -> list[Path]:
    model = _cache_folder() / f"models--{name.replace('/', '--')}"
    found = sorted((model / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    try:
        main = model / "snapshots" / (model / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return found
    return sorted(found, key=lambda path: path != main)


def _cache_folder() -> Path:
    """Return the hub's cache by its environment variables, without importing its package, which takes time."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache_home / "huggingface").expanduser() / "hub"


def _missing_in_snapshot(folder: Path) -> list[str]:
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        return [] if any(next(folder.glob(pattern), None) for pattern in WEIGHTS) else ["weights (*.safetensors)"]
    return missing_parts(folder)


def cached_template(name: str) -> Path | None:
    """Return the newest folder in the hub's cache that has a model's chat template, even if its weights are missing."""
    return next((folder for folder in _snapshots(name) if (folder / _TEMPLATE_FILES[0]).is_file()), None)


def fetch_template(name: str) -> Path | None:
    """Return the folder of a hub model's chat template, after downloading only the template unless it is cached.

    Args:
        name: The hub name.

    Returns:
        A folder in the hub's cache; None if the template cannot be downloaded within a few seconds.
    """
    if cached_template(name) is None and ask_hub(name).problem is None:
        _within_seconds(lambda: _fetch_files(name))
    return cached_template(name)


def _fetch_files(name: str) -> bool:
    """Download the files of a model's template that it has. Return True, because None means no answer in time."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    # The last one marks a complete copy. A model may lack the other.
    for file in reversed(_TEMPLATE_FILES):
        with suppress(OSError, ValueError, HfHubHTTPError):
            hf_hub_download(name, file, etag_timeout=_REQUEST_SECONDS)
    return True


def fetch_model(name: str, *, given: str, with_code: bool = False) -> Path:
    """Return the folder of a hub model or adapter, after downloading it unless it is cached.

    Args:
        name: The hub name.
        given: The setting and its value, for messages.
        with_code: Whether to download Python files too.

    Returns:
        The folder of its snapshot in the hub's cache.

    Raises:
        ConfigError: It cannot be downloaded.
    """
    if folder := cached_snapshot(name):
        return folder
    if problem := ask_hub(name).problem:
        raise ConfigError(unavailable(given, name, problem))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=[*_FETCHED, *(["*.py"] if with_code else [])]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(unavailable(given, name, " ".join(str(error).split())[:300])) from error


def unavailable(given: str, name: str, problem: str) -> str:
    """Return the message for a hub model that cannot be fetched.

    Args:
        given: The setting and its value.
        name: The hub name.
        problem: The reason.

    Returns:
        The message, with the parts that an incomplete copy in the cache lacks.
    """
    snapshots = _snapshots(name)
    copy = f"; its copy in the cache lacks {' and '.join(_missing_in_snapshot(snapshots[0]))}" if snapshots else ""
    return (
        f"cannot fetch {given} from the Hugging Face hub ({problem}{copy}); give a folder that exists, or a hub name "
        "that this machine can reach"
    )


@cache
def ask_hub(name: str) -> HubAnswer:
    """Ask the hub whether a model or adapter can be fetched, within a few seconds. The answer is cached.

    Args:
        name: The hub name.

    Returns:
        The answer. An unreachable hub is a problem too.
    """
    if any(_is_true(os.environ.get(variable)) for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return HubAnswer(problem="HF_HUB_OFFLINE is set, and the model is not in the cache")
    answer = _within_seconds(lambda: _ask(name))
    return answer or HubAnswer(problem=f"no answer within {_ANSWER_SECONDS:.0f} s")


def _within_seconds(ask: Callable[[], _Answer]) -> _Answer | None:
    """Return an answer of the hub, or None if there is none in time."""
    answers: list[_Answer] = []
    asking = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return answers[0] if answers else None


def _is_true(value: str | None) -> bool:
    return (value or "").strip().upper() in ("1", "ON", "YES", "TRUE")


def _ask(name: str) -> HubAnswer:
    for file in (CONFIG, ADAPTER_CONFIG):
        answer = _ask_for_file(name, file)
        if answer is not None:
            return answer
    return HubAnswer(problem=f"it has neither {CONFIG} nor {ADAPTER_CONFIG}, so it is no model", is_final=True)


def _ask_for_file(name: str, file: str) -> HubAnswer | None:
    """Ask for one file of a model; None means that the model lacks it."""
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    login = "log in with `hf auth login` or set HF_TOKEN"
    try:
        # A download would retry an unreachable hub for a minute.
        get_hf_file_metadata(hf_hub_url(name, file), timeout=_REQUEST_SECONDS)
        path = Path(hf_hub_download(name, file, etag_timeout=_REQUEST_SECONDS))
    except GatedRepoError:
        return HubAnswer(problem=f"it is gated: accept its terms at https://huggingface.co/{name}, then {login}")
    except RepositoryNotFoundError:
        problem = f"there is no such model, or it is private: correct the name, or {login}"
        return HubAnswer(problem=problem, is_final=True)
    except LocalEntryNotFoundError as error:
        return HubAnswer(problem=f"the hub cannot be reached: {_first_line(error)}")
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        return HubAnswer(problem=_first_line(error), is_final=True)
    except HfHubHTTPError as error:
        return HubAnswer(problem=f"the hub answered: {_first_line(error)}")
    except (httpx.HTTPError, OSError) as error:
        return HubAnswer(problem=f"the hub cannot be reached: {_first_line(error)}")
    return HubAnswer(config=_read_config(path) if file == CONFIG else None)


def _read_config(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
