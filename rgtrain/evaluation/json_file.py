"""Read JSON files that may be damaged."""

import json
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError


def read_json(path: Path, *, fix: str) -> dict[str, Any]:
    """Read a file with a JSON mapping.

    Args:
        path: The file.
        fix: What the user should do if it is damaged, for the message.

    Raises:
        ConfigError: The file cannot be read or holds anything else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error!s:.100}); {fix}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged (it holds a {type(value).__name__} instead of a mapping); {fix}")
    return value
