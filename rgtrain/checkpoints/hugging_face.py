"""Copy the files of a Hugging Face model other than weights: configs, tokenizer, chat templates, trusted code."""

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
# The files that transformers saves for models and tokenizers of text and images. All other files are skipped: weights,
# the base model's README.md, and files that don't belong to a model.
_COPIED_FILES = re.compile(
    r"generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|tekken\.json"
    r"|vocab\.json|vocab\.txt|merges\.txt|normalizer\.json|[\w.-]+\.(model|tiktoken)"
    r"|chat_template\.jinja|chat_template\.json"
    r"|processor_config\.json|preprocessor_config\.json|video_preprocessor_config\.json",
    re.ASCII,
)
_CODE_FILE = re.compile(r"\w+\.py", re.ASCII)
TEMPLATE_FOLDER = "additional_chat_templates"
_TEMPLATE_FILE = re.compile(r"[\w.-]+\.jinja", re.ASCII)
# Files skipped without a warning: weights, their index, and files that the export writes itself.
_SILENTLY_SKIPPED = re.compile(r"README\.md|adapter_config\.json|\..*|.+\.(safetensors|bin|pt|pth|index\.json)")
# The largest tokenizer.json in use has 33 MB, and a config.json with a thousand labels 100 KB.
_MAX_CONFIG_BYTES = 4 * 2**20
MAX_PARSED_BYTES = 16 * 2**20
_MAX_COPIED_BYTES = 256 * 2**20
_MAX_FILES = 10_000
# Keys that make transformers read another file, or load a kernel from the hub.
_REMOVED_KEYS = ("configuration_files", "attn_implementation", "_attn_implementation", "experts_implementation")
# Keys by which transformers would load the exported weights, which are plain, as quantized ones of the base model.
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")

_WITHOUT_CODE = "%s refers to the model's own code, which is not exported; transformers will use its built-in class"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Checked copies of a model's files.

    Attributes:
        origin: The folder of the original files.
        folder: The folder of the copies.
        config: The content of config.json.
        skipped: Names of files in `origin` that don't belong to a model, or are code that is not trusted.
        quantization: The method by which the base model's weights are quantized, which `config` omits; "" if none.
    """

    origin: Path
    folder: Path
    config: dict[str, Any]
    skipped: tuple[str, ...]
    quantization: str = ""

    def report_skipped(self) -> None:
        """Log one warning with the names of the skipped files, if there are any."""
        if self.skipped:
            more = f" and {len(self.skipped) - 8} more" if len(self.skipped) > 8 else ""
            names = ", ".join(self.skipped[:8])
            logger.warning(
                "not exported, because they are untrusted code or don't belong to a model: %s%s", names, more
            )


def copy_model_files(origin: Path, folder: Path, *, trust: bool) -> ModelFiles:
    """Copy the config, tokenizer, chat templates and, with `trust`, the Python code in `origin` to `folder`.

    Args:
        origin: A model's folder.
        folder: The existing folder for the copies. Later steps of the export read only these.
        trust: Whether to copy Python code.

    Returns:
        The copies.

    Raises:
        ConfigError: There is no usable config.json, or a file is too large or not a regular file inside `origin`.
    """
    if not os.path.lexists(origin / CONFIG):
        raise ConfigError(
            f"there is no config.json in {str(origin)!r}: give the Hugging Face folder of the trained model"
        )
    skipped, free = [], _MAX_COPIED_BYTES
    for path in _list_folder(origin):
        if path.name == TEMPLATE_FOLDER:
            (folder / TEMPLATE_FOLDER).mkdir()
            for template in _list_folder(path):
                if _TEMPLATE_FILE.fullmatch(template.name):
                    free -= _copy(template, folder / TEMPLATE_FOLDER / template.name, inside=origin, max_bytes=free)
        elif _COPIED_FILES.fullmatch(path.name) or (trust and _CODE_FILE.fullmatch(path.name)):
            free -= _copy(path, folder / path.name, inside=origin, max_bytes=free)
        elif path.name != CONFIG and not _SILENTLY_SKIPPED.fullmatch(path.name):
            skipped.append(printable(path.name, max_characters=60))
    config = read_json_object(origin / CONFIG, inside=origin, max_bytes=_MAX_CONFIG_BYTES)
    quantization = ""
    for part in nested_objects(config):
        for key in _REMOVED_KEYS:
            part.pop(key, None)
        for key in _QUANTIZATION_KEYS:
            if (removed := part.pop(key, None)) is not None:
                method = removed.get("quant_method") if isinstance(removed, dict) else None
                quantization = printable(str(method or "unknown method"), max_characters=30)
    write_json(folder / CONFIG, config)
    return ModelFiles(origin, folder, config, tuple(skipped), quantization)


def remove_code_references(files: ModelFiles) -> None:
    """Remove `auto_map`, which names code that is not exported, from the copied configs.

    Args:
        files: The copies.

    Raises:
        ConfigError: The tokenizer can't be loaded without that code.
    """
    if "auto_map" in files.config:
        logger.warning(_WITHOUT_CODE, CONFIG)
    for part in nested_objects(files.config):
        part.pop("auto_map", None)
    for name in (TOKENIZER_CONFIG, *_PROCESSOR_CONFIGS):
        path = files.folder / name
        content = read_json_object(path, max_bytes=MAX_PARSED_BYTES) if path.exists() else {}
        if "auto_map" not in content:
            continue
        if name == TOKENIZER_CONFIG:
            check_tokenizer(files, trust=False)
        del content["auto_map"]
        write_json(path, content)
        logger.warning(_WITHOUT_CODE, name)


def refer_to_copied_code(files: ModelFiles) -> None:
    """Make `auto_map` in the copied configs refer to the copied code instead of the same code in a hub repository."""
    for part in nested_objects(files.config):
        _use_copied_code(part, files.folder)
    for name in (TOKENIZER_CONFIG, *_PROCESSOR_CONFIGS):
        path = files.folder / name
        content = read_json_object(path, max_bytes=MAX_PARSED_BYTES) if path.exists() else {}
        if _use_copied_code(content, files.folder):
            write_json(path, content)


def _use_copied_code(content: dict[str, Any], folder: Path) -> bool:
    """Remove the repository from references such as "owner/name--module.Class", and return whether there was one."""

    def local(reference: Any) -> Any:
        if isinstance(reference, list):
            return [local(one) for one in reference]
        own = reference.rpartition("--")[2] if isinstance(reference, str) else ""
        return own if (folder / f"{own.partition('.')[0]}.py").is_file() else reference

    before = content.get("auto_map")
    if isinstance(before, dict):
        content["auto_map"] = {name: local(reference) for name, reference in before.items()}
    elif isinstance(before, list):
        content["auto_map"] = local(before)
    return bool(content.get("auto_map") != before)


def check_tokenizer(files: ModelFiles, *, trust: bool) -> None:
    """Raise ConfigError if transformers can't load the copied tokenizer."""
    from transformers import AutoTokenizer

    try:
        with quiet_libraries():
            AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust)
    except Exception as error:  # tokenizers raises plain Exceptions, and a damaged file can raise anything.
        raise unusable_file_error(files, TOKENIZER_CONFIG, "tokenizer", error) from error


def unusable_file_error(files: ModelFiles, name: str, made: str, error: Exception) -> ConfigError:
    """Return the error for a file from which transformers can't make the `made` (model or tokenizer)."""
    said = " ".join(str(error)[:1000].split()) or type(error).__name__
    # transformers names the copy, which no longer exists when the user reads the message.
    reason = printable(said.replace(str(files.folder), str(files.origin)), max_characters=300)
    code = "trust_remote_code" in str(error) or "custom code" in str(error)
    hint = ". If you trust who wrote it, --trust-checkpoint lets the folder's own code run" if code else ""
    return ConfigError(f"can't load the {made} from {str(files.origin / name)!r}: {reason}{hint}")


def _list_folder(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"can't read the folder {str(folder)!r} ({error.strerror or error}): make it readable"
        ) from None
    if len(entries) > _MAX_FILES:
        raise ConfigError(
            f"{str(folder)!r} has {len(entries)} files, but at most {_MAX_FILES} are allowed: give another folder"
        )
    return entries


def _copy(path: Path, target: Path, *, inside: Path, max_bytes: int) -> int:
    """Copy a file and return its size. Raise ConfigError if it exceeds `max_bytes`."""
    try:
        source = open_regular(path, inside=inside)
    except FileNotFoundError:
        raise ConfigError(f"{str(path)!r} disappeared during the export: export again") from None
    num_bytes = 0
    with source, target.open("wb") as copy:
        while block := source.read(2**20):
            if (num_bytes := num_bytes + len(block)) > max_bytes:
                raise ConfigError(
                    f"the files to copy from {str(path.parent)!r} have more than {_MAX_COPIED_BYTES} bytes "
                    f"(at {path.name!r}): remove files that don't belong to the model"
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
    """Write `content` to `path` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
