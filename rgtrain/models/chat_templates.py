"""Find the chat template of a model: its own, one of several, or one that the user gives as a file or a text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.paths import project_path

TEMPLATE_FILE, PROCESSOR_TEMPLATE_FILE = "chat_template.jinja", "chat_template.json"
_DEFAULT = "default"
_MAX_BYTES = 1 << 20


def read_chat_template(given: str) -> str:
    """Read the chat template that a configuration gives.

    Args:
        given: The text of a Jinja template, the path of a file with one, or the name of one of the model's templates.

    Returns:
        The text of the template, or the name as it is.

    Raises:
        ConfigError: The file cannot be read.
    """
    if _is_template(given):
        return given
    for file in (Path(given).expanduser(), project_path(given)):
        if file.is_file():
            return _read_file(file)
    if "/" in given or given.endswith((".jinja", ".jinja2", ".j2", ".json", ".txt")):
        raise ConfigError(f"chat_template {given!r} does not exist; give a file, or the text of a Jinja template")
    return given


def chat_template_of(
    tokenizer: Any, *, folder: Path, model: str, given: str | None = None, key: str = "chat_template"
) -> str:
    """Return the chat template that renders a model's prompts.

    Args:
        tokenizer: The model's tokenizer. Its template may be missing, or a mapping of several by name.
        folder: The tokenizer's folder. If the tokenizer has no template, chat_template.json is read, in which
            processors of texts and images keep theirs.
        model: The model's path as the user gave it, for messages.
        given: The user's own template, or the name of one of the model's templates.
        key: The configuration key of the user's own template, for messages.

    Returns:
        The text of the template.

    Raises:
        ConfigError: The model has no template, several without a default, or none of the given name.
    """
    own = tokenizer.chat_template or _processor_template(folder)
    named: Mapping[str, str] = own if isinstance(own, Mapping) else {_DEFAULT: own} if own else {}
    if given is not None:
        if given in named or _is_template(given):
            return named.get(given, given)
        names = f"; the model has the templates {', '.join(sorted(named))}" if named else ""
        raise ConfigError(
            f"{key} {given!r:.80} is neither a file, nor the text of a Jinja template, nor the name of a template of "
            f"{model!r}{names}"
        )
    if not named:
        raise ConfigError(
            f"the tokenizer of {model!r} has no chat template, so it is a base model; use its Instruct version, or "
            f"give a template as {key}"
        )
    if _DEFAULT not in named:
        raise ConfigError(
            f"{model!r} has the chat templates {', '.join(sorted(named))} and no default; give one of them as {key}"
        )
    return named[_DEFAULT]


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


def _processor_template(folder: Path) -> str | dict[str, str] | None:
    file = folder / PROCESSOR_TEMPLATE_FILE
    return _templates_in(file) if file.is_file() else None


def _read_file(file: Path) -> str:
    if file.suffix == ".json":
        found = _templates_in(file)
        if not isinstance(found, str):
            raise ConfigError(f"chat_template {str(file)!r} holds several templates; give one of them")
        return found
    text = read_template_file(file)
    if not _is_template(text):
        raise ConfigError(f"chat_template {str(file)!r} is no Jinja template, because it has neither {{{{ nor {{%")
    return text


def _templates_in(file: Path) -> str | dict[str, str]:
    try:
        found = json.loads(read_template_file(file))
        found = found["chat_template"] if isinstance(found, dict) else found
        if isinstance(found, list):
            found = {str(item["name"]): str(item["template"]) for item in found}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{str(file)!r} holds no chat template ({error}); restore it") from error
    if isinstance(found, str) or (isinstance(found, dict) and all(isinstance(one, str) for one in found.values())):
        return found
    raise ConfigError(f"{str(file)!r} holds no chat template; restore it")


def read_template_file(file: Path) -> str:
    """Return the text of a file with a chat template. Raises ConfigError if it cannot be read or is too long."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"the chat template {str(file)!r} has more than {_MAX_BYTES} bytes; give a shorter one")
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the chat template {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the chat template {str(file)!r} is not UTF-8 text; save it as UTF-8") from error
