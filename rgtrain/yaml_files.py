"""Read YAML strictly, and describe mistakes in YAML files."""

from pathlib import Path
from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return the mapping of a node.

        Args:
            node: The node.
            deep: Whether nested values are built at once.

        Returns:
            The mapping.

        Raises:
            ConstructorError: A key stands twice.
        """
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in lines:
                    places = f"in lines {lines[key.value]} and {line}"
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} stands twice, {places}; keep one of them"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def load_without_aliases(content: bytes) -> Any:
    """Load YAML of an untrusted origin.

    Args:
        content: The content of the file.

    Returns:
        Plain values.

    Raises:
        YAMLError: The content is not valid YAML, or has aliases, with which a few lines can expand to billions of
            values.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, Loader=loader)):
        raise yaml.YAMLError("it has aliases, which are not allowed in a run's config")
    return yaml.load(content, Loader=loader)


def problem_of(path: Path) -> str | None:
    """Describe the first mistake in a YAML file that should hold a mapping. Return None if there is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return f"{path} is not UTF-8 text; save line {line} with its byte 0x{error.object[error.start]:02x} as UTF-8"
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        if mark is None:
            return f"{path}: {problem}"
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces"
        return f"{path}, line {mark.line + 1}, column {mark.column + 1}: {problem}"
    except RecursionError:
        return f"{path} is nested too deeply"
    if content is None:
        return f"{path} is empty"
    return None if isinstance(content, dict) else f"{path} holds no mapping; write `key: value` lines"
