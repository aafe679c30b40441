"""Upload an exported model to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, but not declared so

from rgtrain.errors import ConfigError


def check_login(repo: str) -> None:
    """Raise ConfigError unless `repo` is a valid name on the hub and the user is logged in."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to {repo!r} is not a valid repository name ({error}): give OWNER/NAME") from None
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # A missing or wrong token or no network: the upload would fail.
        raise ConfigError(f"can't upload to {repo!r} ({_first_line(error)}): log in with `hf auth login`") from None


def push(folder: Path, repo: str, *, message: str) -> None:
    """Upload `folder` to `repo`, which is created as private if it doesn't exist. Raise ConfigError on failure."""
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id=repo, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo, repo_type="model", commit_message=message)
    except Exception as error:  # The hub's client raises errors of several libraries.
        raise ConfigError(
            f"the export to {str(folder)!r} is complete, but uploading it to {repo!r} failed ({_first_line(error)}): "
            f"repeat with `hf upload {repo} {folder}`"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
