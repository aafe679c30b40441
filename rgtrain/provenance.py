"""Record how a run was started, so that it can be repeated, without secrets."""

import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.paths import IS_INSTALLED, PROJECT_ROOT

FILE = "provenance.jsonl"

_MASK = "***"
# The end of a key whose value is a secret, as in `api_key`, `WANDB_API_KEY` and `hub.accessToken`, not `max_tokens`.
_SECRET_KEY = (
    r"(?:(?:api|access|private|secret|auth|signing)[_-]?key|token|passw(?:or)?d|passphrase|secret|authorization"
    r"|credentials?|auth|cookie)"
)
# A quoted value ends at its quote. Empty and nested values, null, true and false hold no secret.
_VALUE = (
    r"(?!(?:null|none|true|false)\b)(?:(?:bearer|basic|token)\s++)?"
    r"""(?:"[^"\n]++"|'[^'\n]++'|\\["'][^"'\\\n]++\\["']|[^\s"'\\{}\[\](),;&]++)"""
)
# Each pattern takes linear time, because it is also applied to text of models.
_IS_SECRET_KEY = re.compile(rf"{_SECRET_KEY}\Z", re.IGNORECASE)
_KEY_AND_VALUE = re.compile(rf"""({_SECRET_KEY}\\?["']?\s*+[:=]\s*+){_VALUE}""", re.IGNORECASE)
# An option on a command line or in a list of words.
_OPTION_AND_VALUE = re.compile(rf"""((?<![\w-])--[\w.-]{{0,60}}?{_SECRET_KEY}["']?,?\s++){_VALUE}""", re.IGNORECASE)
_USER_IN_URL = re.compile(r"""(?<=://)[^\s/?#"'<>]*@""")
# Tokens of a known form: Hugging Face, OpenAI and similar services, GitHub, AWS, Slack, W&B.
_TOKEN = re.compile(
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{16,}+|sk-[\w-]{16,}+|gh[pousr]_[A-Za-z0-9]{16,}+|github_pat_\w{16,}+"
    r"|AKIA[A-Z0-9]{12,}+|xox[abeoprs]-[\w-]{16,}+|wandb_v\d_\w{16,}+)"
)


def mask_secrets(text: str) -> str:
    """Replace every recognised secret in `text` by `***`.

    It recognises passwords in URLs, values of keys such as `api_key`, `token`, `password` and `authorization`, and
    tokens of a known form (`hf_...`, `sk-...`).

    Args:
        text: Any text, such as a command line, a URL or a line of a log. It may come from a model, because the time is
            linear in its length.

    Returns:
        The masked text. Masking it again changes nothing.

    >>> mask_secrets("http://me:pa55@host/v1 WANDB_API_KEY=0123abcd max_tokens=8")
    'http://***@host/v1 WANDB_API_KEY=*** max_tokens=8'
    """
    text = _USER_IN_URL.sub(f"{_MASK}@", text)
    for pattern in (_KEY_AND_VALUE, _OPTION_AND_VALUE):
        text = pattern.sub(rf"\1{_MASK}", text)
    return _TOKEN.sub(_MASK, text)


def masked_values(tree: Any) -> Any:
    """Return a copy of a tree of mappings, lists and plain values with its secrets masked.

    Args:
        tree: For example, a resolved configuration.

    Returns:
        The copy. A string whose key names a secret becomes `***`; `mask_secrets` is applied to all other strings.
    """
    if isinstance(tree, Mapping):
        return {
            key: _MASK if isinstance(value, str) and value and _IS_SECRET_KEY.search(str(key)) else masked_values(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [masked_values(value) for value in tree]
    return mask_secrets(tree) if isinstance(tree, str) else tree


def masked_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with secrets masked.

    Args:
        words: The program and its arguments, such as `sys.argv`.

    Returns:
        The same number of words. The value in `some.api_key=VALUE` and the word after `--api-key` are masked.
    """
    masked, is_secret = [], False
    for word in words:
        key, equals, value = word.partition("=")
        names_secret = _IS_SECRET_KEY.search(key) is not None
        if is_secret:
            masked.append(_MASK)
        elif names_secret and equals and not value.startswith(("{", "[")):
            masked.append(f"{key}={_MASK}")
        else:
            masked.append(mask_secrets(word))
        is_secret = names_secret and not equals and word.startswith("-")
    return masked


def masked_command(words: Sequence[str]) -> str:
    """Return a command line in shell syntax, with secrets masked.

    Args:
        words: The program and its arguments.

    Returns:
        The command. It can be run again after the masks are replaced.
    """
    # Mask before quoting, because quotes would hide the start of a value.
    return shlex.join(masked_words(words))


def record(run_dir: Path) -> None:
    """Append a line about this start to `run_dir`/provenance.jsonl. A resumed run has several lines."""
    with (run_dir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(provenance()) + "\n")


def provenance() -> dict[str, Any]:
    """Return the command line, the commit and uncommitted changes, and the versions of Python and all packages."""
    packages: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # Of several versions on the path, Python imports the first.
        packages.setdefault(distribution.metadata["Name"], distribution.version)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": masked_command([sys.executable, *sys.argv]),
        "working_directory": str(Path.cwd()),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _git("status", "--porcelain", "--untracked-files=no"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def commit() -> str | None:
    """Return the project's commit, with the suffix `-dirty` if files have changed, or None outside a git checkout."""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    """Return the output of a git command, or None if git or the repository is missing."""
    if IS_INSTALLED:
        # The current folder may be a repository of another project.
        return None
    try:
        done = subprocess.run(["git", "-C", str(PROJECT_ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
