"""Rewrite the tokenizer files of transformers 5 so that all versions, and other loaders, read them.

A tokenizer that transformers 5 saves cannot be loaded by name in transformers 4: its class has a new name, and its list
of special tokens is under a key that held a mapping before. Loaders of several projects look for the chat template in
tokenizer_config.json only.
"""

from pathlib import Path
from typing import Any

from rgtrain.checkpoints.hugging_face import (
    MAX_PARSED_BYTES,
    TEMPLATE_FOLDER,
    TOKENIZER_CONFIG,
    ModelFiles,
    write_json,
)
from rgtrain.checkpoints.untrusted_files import read_bounded, read_json_object
from rgtrain.errors import ConfigError

CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer.json"
# The largest one in use has 33 MB.
MAX_TOKENIZER_BYTES = 128 * 2**20
# Base classes of transformers 5 by their names in transformers 4, under which transformers 5 knows them as well.
_CLASS_NAMES = {"TokenizersBackend": "PreTrainedTokenizerFast", "PythonBackend": "PreTrainedTokenizer"}
# Classes that add a beginning by default in transformers 4, and ignore the rule in tokenizer.json. Transformers 5 saves
# the rule there only.
_WITH_ADDED_TOKENS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer")
# Arguments of the call that loaded the tokenizer, which transformers 5 saves too.
_LOADING_ARGUMENTS = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "special_tokens_map_file")


def rewrite_tokenizer(files: ModelFiles) -> None:
    """Rewrite the copied tokenizer_config.json. Without one, do nothing.

    Args:
        files: The copies.

    Raises:
        ConfigError: A file is damaged or too large.
    """
    path = files.folder / TOKENIZER_CONFIG
    if not path.is_file():
        return
    config = read_json_object(path, max_bytes=MAX_PARSED_BYTES)
    for key in _LOADING_ARGUMENTS:
        config.pop(key, None)
    name = config.get("tokenizer_class")
    if isinstance(name, str):
        config["tokenizer_class"] = _CLASS_NAMES.get(name, name)
    if isinstance(config.get("extra_special_tokens"), list):
        extra = config.pop("extra_special_tokens")
        config.setdefault("additional_special_tokens", extra)
    if name in _WITH_ADDED_TOKENS:
        config |= _added_tokens(files.folder / TOKENIZER, config)
    templates = _templates(files.folder)
    if templates and not config.get("chat_template"):
        config["chat_template"] = templates["default"] if list(templates) == ["default"] else _named(templates)
    write_json(path, config)


def _added_tokens(path: Path, config: dict[str, Any]) -> dict[str, bool]:
    """Return whether the rule in tokenizer.json adds a beginning and an end to a text; {} if there is no such rule."""
    content = read_json_object(path, max_bytes=MAX_TOKENIZER_BYTES) if path.is_file() else {}
    rule = content.get("post_processor")
    single = rule.get("single") if isinstance(rule, dict) and rule.get("type") == "TemplateProcessing" else None
    if not isinstance(single, list) or not all(isinstance(part, dict) for part in single):
        return {}
    special = [part.get("SpecialToken") for part in single]
    names = [part.get("id") if isinstance(part, dict) else None for part in special]
    own = {side: _text(config.get(f"{side}_token")) for side in ("bos", "eos")}
    if names.count(None) != 1 or any(name not in own.values() for name in names if name is not None):
        return {}
    place = names.index(None)
    found = {"add_bos_token": own["bos"] in names[:place], "add_eos_token": own["eos"] in names[place:]}
    return {key: value for key, value in found.items() if key not in config}


def _text(token: Any) -> str:
    """Return the text of a token, which older versions save as an object; "" if there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _templates(folder: Path) -> dict[str, str]:
    """Return the chat templates in files by name."""
    paths = {"default": folder / CHAT_TEMPLATE}
    paths |= {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    try:
        return {
            name: read_bounded(path, max_bytes=MAX_PARSED_BYTES).decode("utf-8")
            for name, path in paths.items()
            if path.is_file()
        }
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"a chat template in {str(folder)!r} is not UTF-8 text ({error.reason}): restore it"
        ) from None


def _named(templates: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "template": template} for name, template in templates.items()]
