"""Pushing an exported model to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, but not declared so

from rgtrain.errors import ConfigError


def check_login(repo: str) -> None:
    """Raises ConfigError unless `repo` is a name that the hub takes and someone is logged in there."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to {repo!r} is no repository of the hub: give OWNER/NAME ({error})") from None
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # No token, a wrong one, no network: all mean that the push would fail.
        raise ConfigError(f"can't push to {repo!r}: {_first_line(error)}. Log in with `hf auth login`") from None


def push(folder: Path, repo: str, *, message: str) -> None:
    """Upload all of `folder` to `repo`, made private if it isn't there. Raises ConfigError where that fails."""
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id=repo, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo, repo_type="model", commit_message=message)
    except Exception as error:  # The hub's client raises its own, the network's and the system's errors.
        raise ConfigError(
            f"the export is complete in {str(folder)!r}, but pushing it to {repo!r} failed ({_first_line(error)}): "
            f"repeat with `hf upload {repo} {folder}`"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
