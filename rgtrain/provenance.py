"""The record of how a run was started, enough to start it again, without the secrets that were given to it."""

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

from rgtrain.paths import PROJECT_ROOT

FILE = "provenance.jsonl"

_MASK = "***"
# The last word of a key whose value is a secret: `api_key`, `WANDB_API_KEY`, `hub.accessToken`, but not `max_tokens`.
_SECRET_KEY = (
    r"(?:(?:api|access|private|secret|auth|signing)[_-]?key|token|passw(?:or)?d|passphrase|secret|authorization"
    r"|credentials?|auth|cookie)"
)
# A quoted value ends at its quote. An empty one, a nested one and null, true or false hold no secret.
_VALUE = (
    r"(?!(?:null|none|true|false)\b)(?:(?:bearer|basic|token)\s++)?"
    r"""(?:"[^"\n]++"|'[^'\n]++'|\\["'][^"'\\\n]++\\["']|[^\s"'\\{}\[\](),;&]++)"""
)
# Each pattern takes time that is linear in the text's length: it meets the output of models too.
_IS_SECRET_KEY = re.compile(rf"{_SECRET_KEY}\Z", re.IGNORECASE)
_KEY_AND_VALUE = re.compile(rf"""({_SECRET_KEY}\\?["']?\s*+[:=]\s*+){_VALUE}""", re.IGNORECASE)
# On a command line, or in a list of its words.
_OPTION_AND_VALUE = re.compile(rf"""((?<![\w-])--[\w.-]{{0,60}}?{_SECRET_KEY}["']?,?\s++){_VALUE}""", re.IGNORECASE)
_USER_IN_URL = re.compile(r"""(?<=://)[^\s/?#"'<>]*@""")
# Tokens known by their form: Hugging Face, OpenAI and the like, GitHub, AWS, Slack, W&B.
_TOKEN = re.compile(
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{16,}+|sk-[\w-]{16,}+|gh[pousr]_[A-Za-z0-9]{16,}+|github_pat_\w{16,}+"
    r"|AKIA[A-Z0-9]{12,}+|xox[abeoprs]-[\w-]{16,}+|wandb_v\d_\w{16,}+)"
)


def mask_secrets(text: str) -> str:
    """Replace every secret that can be recognised in `text` by `***`.

    Recognised are passwords in URLs, values of keys such as `api_key`, `token`, `password` and `authorization`, and
    tokens of a known form (`hf_...`, `sk-...`).

    Args:
        text: Any text, such as a command line, a URL, a line of a log. Text of a model is safe: time is linear.

    Returns:
        The same text with masks. Masking twice changes nothing more.

    >>> mask_secrets("http://me:pa55@host/v1 WANDB_API_KEY=0123abcd max_tokens=8")
    'http://***@host/v1 WANDB_API_KEY=*** max_tokens=8'
    """
    text = _USER_IN_URL.sub(f"{_MASK}@", text)
    for pattern in (_KEY_AND_VALUE, _OPTION_AND_VALUE):
        text = pattern.sub(rf"\1{_MASK}", text)
    return _TOKEN.sub(_MASK, text)


def masked_values(tree: Any) -> Any:
    """Copy a tree of mappings, lists and plain values with the secrets in it masked.

    Args:
        tree: Plain values, such as a resolved configuration.

    Returns:
        The copy. A text is `***` if its key names a secret; every other text went through `mask_secrets`.
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
    """Mask the secrets in the words of a command line.

    Args:
        words: The program and its arguments, such as `sys.argv`.

    Returns:
        As many words. The whole value of `some.api_key=VALUE` and the word after `--api-key` are masked.
    """
    masked, is_value = [], False
    for word in words:
        key, equals, value = word.partition("=")
        names_secret = _IS_SECRET_KEY.search(key) is not None
        if is_value:
            masked.append(_MASK)
        elif names_secret and equals and not value.startswith(("{", "[")):
            masked.append(f"{key}={_MASK}")
        else:
            masked.append(mask_secrets(word))
        is_value = names_secret and not equals and word.startswith("-")
    return masked


def masked_command(words: Sequence[str]) -> str:
    """Join the words of a command line as a shell reads them, with secrets masked.

    Args:
        words: The program and its arguments.

    Returns:
        The command, which can be run again once the masks are filled in.
    """
    # Before the words are quoted: a quote would hide where a value begins.
    return shlex.join(masked_words(words))


def record(run_dir: Path) -> None:
    """Add to `run_dir`/provenance.jsonl a line for this start: a run that is continued has several."""
    with (run_dir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(provenance()) + "\n")


def provenance() -> dict[str, Any]:
    """The command line, the project's commit and whether files differ from it, Python, and every package's version."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
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
    """The project's commit, marked where the working tree differs from it; None outside a git checkout."""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    """None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(PROJECT_ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
