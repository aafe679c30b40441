"""The files that go beside the weights: config, tokenizer, chat templates, generation config, trusted code."""

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.untrusted_files import open_regular, printable, quiet_libraries, read_json_object
from rgtrain.errors import ConfigError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# All that transformers' models and tokenizers of text and images save, under the names that it looks for. Everything
# else stays behind: weights, the base model's README.md, and files that are no part of a model.
_COPIED = re.compile(
    r"generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|tekken\.json"
    r"|vocab\.json|vocab\.txt|merges\.txt|normalizer\.json|[\w.-]+\.(model|tiktoken)"
    r"|chat_template\.jinja|chat_template\.json"
    r"|processor_config\.json|preprocessor_config\.json|video_preprocessor_config\.json",
    re.ASCII,
)
_CODE = re.compile(r"\w+\.py", re.ASCII)
_TEMPLATES = "additional_chat_templates"
_TEMPLATE = re.compile(r"[\w.-]+\.jinja", re.ASCII)
# Left out without a word: weights and their index, and what is written anew.
_OTHERS = re.compile(r"README\.md|adapter_config\.json|\..*|.+\.(safetensors|bin|pt|pth|index\.json)")
# The largest tokenizer.json in use has 33 MB, and a config.json with a thousand labels 100 KB.
_MOST_CONFIG_BYTES = 4 * 2**20
_MOST_PARSED_BYTES = 16 * 2**20
_MOST_COPIED_BYTES = 256 * 2**20
_MOST_FILES = 10_000
# These make transformers read another file, or load a kernel from the hub.
_REMOVED_KEYS = ("configuration_files", "attn_implementation", "_attn_implementation", "experts_implementation")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Checked copies, in `folder`, of the files of a model in `origin`; `config` is the content of its config.json.

    `left_out` are the names of files in `origin` that are no part of a model, or code that is not trusted.
    """

    origin: Path
    folder: Path
    config: dict[str, Any]
    left_out: tuple[str, ...]

    def report_left_out(self) -> None:
        """Log one warning with the names of the files that are left out, if there are any."""
        if self.left_out:
            more = f" and {len(self.left_out) - 8} more" if len(self.left_out) > 8 else ""
            names = ", ".join(self.left_out[:8])
            logger.warning("left out of the export, as no part of a model that is trusted: %s%s", names, more)


def copy_model_files(origin: Path, folder: Path, *, trust: bool) -> ModelFiles:
    """Copy the config, tokenizer, chat templates and, with `trust`, the Python code in `origin` to `folder`.

    Everything that reads these files later reads the copies.

    Raises:
        ConfigError: There is no usable config.json, or a file to copy is no regular file in `origin`, or too large.
    """
    if not os.path.lexists(origin / CONFIG):
        raise ConfigError(
            f"there is no config.json in {str(origin)!r}: give the Hugging Face folder of the model that was trained"
        )
    left_out, free = [], _MOST_COPIED_BYTES
    for path in _entries(origin):
        if path.name == _TEMPLATES:
            (folder / _TEMPLATES).mkdir()
            for template in _entries(path):
                if _TEMPLATE.fullmatch(template.name):
                    free -= _copy(template, folder / _TEMPLATES / template.name, inside=origin, most_bytes=free)
        elif _COPIED.fullmatch(path.name) or (trust and _CODE.fullmatch(path.name)):
            free -= _copy(path, folder / path.name, inside=origin, most_bytes=free)
        elif path.name != CONFIG and not _OTHERS.fullmatch(path.name):
            left_out.append(printable(path.name, most=60))
    config = read_json_object(origin / CONFIG, inside=origin, most_bytes=_MOST_CONFIG_BYTES)
    for part in nested_objects(config):
        for key in _REMOVED_KEYS:
            part.pop(key, None)
    write_json(folder / CONFIG, config)
    return ModelFiles(origin, folder, config, tuple(left_out))


def remove_code_references(files: ModelFiles) -> None:
    """Take `auto_map` out of the copied configs, which names code that the export does not hold.

    Raises ConfigError if the tokenizer can't be made without that code.
    """
    if "auto_map" in files.config:
        logger.warning("%s names code of its own: exported without it, for transformers' own class", CONFIG)
    for part in nested_objects(files.config):
        part.pop("auto_map", None)
    for name in (TOKENIZER_CONFIG, *_PROCESSOR_CONFIGS):
        path = files.folder / name
        content = read_json_object(path, most_bytes=_MOST_PARSED_BYTES) if path.exists() else {}
        if "auto_map" not in content:
            continue
        if name == TOKENIZER_CONFIG:
            check_tokenizer(files, trust=False)
        del content["auto_map"]
        write_json(path, content)
        logger.warning("%s names code of its own: exported without it, for transformers' own class", name)


def check_tokenizer(files: ModelFiles, *, trust: bool) -> None:
    """Raises ConfigError if transformers can't make the copied tokenizer."""
    from transformers import AutoTokenizer

    try:
        with quiet_libraries():
            AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust)
    except (
        Exception
    ) as error:  # tokenizers raises plain Exceptions, and a damaged file can break transformers anywhere.
        raise unusable(files, TOKENIZER_CONFIG, "tokenizer", error) from error


def unusable(files: ModelFiles, name: str, made: str, error: Exception) -> ConfigError:
    """The refusal of a file of `files` from which transformers can't make the model or tokenizer."""
    said = " ".join(str(error)[:1000].split()) or type(error).__name__
    # transformers names the copy, which is gone by then.
    reason = printable(said.replace(str(files.folder), str(files.origin)), most=300)
    code = "trust_remote_code" in str(error) or "custom code" in str(error)
    hint = ". If you trust who wrote it, --trust-checkpoint lets the folder's own code run" if code else ""
    return ConfigError(f"{str(files.origin / name)!r} makes no {made}: {reason}{hint}")


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"can't read the folder {str(folder)!r} ({error.strerror or error})") from None
    if len(entries) > _MOST_FILES:
        raise ConfigError(
            f"{str(folder)!r} has {len(entries)} files, and a model's folder has {_MOST_FILES} at most: give another"
        )
    return entries


def _copy(path: Path, target: Path, *, inside: Path, most_bytes: int) -> int:
    """Copy a file, and return its size. Raises ConfigError if it exceeds `most_bytes`."""
    try:
        source = open_regular(path, inside=inside)
    except FileNotFoundError:
        raise ConfigError(f"{str(path)!r} went away during the export: export again") from None
    num_bytes = 0
    with source, target.open("wb") as copy:
        while block := source.read(2**20):
            if (num_bytes := num_bytes + len(block)) > most_bytes:
                raise ConfigError(
                    f"the files of {str(path.parent)!r} up to {path.name!r} have more than {_MOST_COPIED_BYTES} bytes, "
                    "and no model has that much beside its weights: replace what is not the model's"
                )
            copy.write(block)
    return num_bytes


def nested_objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `config` and every JSON object inside it."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
        waiting.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
