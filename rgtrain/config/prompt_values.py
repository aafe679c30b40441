"""Read the files that settings of the prompt name, so that a configuration records their content and not their names.

A later edit of a file is then a changed setting, which a resumed run notices. Checkpoints and evaluations keep the
content too.
"""

import json
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.paths import path_from_here

FILE_PREFIX, FUNCTION_PREFIX = "file://", "pkg://"
_MAX_BYTES = 1 << 20
_MAX_EXAMPLES = 100


def read_prompt_file(given: str | None, *, key: str) -> str | None:
    """Return the value of a system prompt, read from its file if it names one.

    Args:
        given: `file://PATH`, or any other value, which is returned as it is.
        key: The configuration key, for messages.

    Returns:
        The content of the file without white space at its ends, or `given`.

    Raises:
        ConfigError: The file cannot be read, is empty, or holds the name of a file or a function.
    """
    if given is None or not given.startswith(FILE_PREFIX):
        return given
    text = _read(given, key=key).strip()
    if not text:
        raise ConfigError(f"{key} is {given!r}, which is empty; write the prompt into it")
    if text.startswith((FILE_PREFIX, FUNCTION_PREFIX)) or (text.isascii() and len(text.split()) == 1):
        raise ConfigError(f"{key} is {given!r}, which holds only {text:.60}; write the text of the prompt into it")
    return text


def read_examples_file(given: Any, *, key: str) -> Any:
    """Return worked examples, read from their file if a file is named.

    Args:
        given: The path of a JSONL file, also as `file://PATH`, or any other value, which is returned as it is.
        key: The configuration key, for messages.

    Returns:
        The objects of the file's lines, or `given`.

    Raises:
        ConfigError: The file cannot be read, a line is no JSON object, or there are no or too many lines.
    """
    if not isinstance(given, str):
        return given
    examples = []
    # Only line feeds end a line of JSONL. Texts in it may contain other separators.
    for number, line in enumerate(_read(given, key=key).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{key} is {given!r}, whose line {number} is no JSON ({error}); correct it") from None
        if not isinstance(example, dict):
            raise ConfigError(
                f"{key} is {given!r}, whose line {number} holds no JSON object; write "
                '{"question": "...", "answer": "..."}'
            )
        examples.append(example)
    if not 0 < len(examples) <= _MAX_EXAMPLES:
        raise ConfigError(f"{key} is {given!r}, which has {len(examples)} examples; give 1 to {_MAX_EXAMPLES}")
    return examples


def _read(given: str, *, key: str) -> str:
    path = path_from_here(Path(given.removeprefix(FILE_PREFIX)))
    try:
        with path.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{key} is {given!r}, which cannot be read ({reason}); give a file relative to the current folder or to "
            "the project's root"
        ) from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{key} is {given!r}, which has more than {_MAX_BYTES} bytes; shorten it")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{key} is {given!r}, whose line {line} is not UTF-8 text; save it as UTF-8") from None
