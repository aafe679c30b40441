"""An export checks the login to the hub first and uploads the result once it is complete."""

from pathlib import Path
from typing import ClassVar

import pytest
from support.checkpoint_files import file_names

from rgtrain.checkpoints.export import export
from rgtrain.errors import ConfigError


class Hub:
    """Replacement of huggingface_hub.HfApi that records its calls."""

    calls: ClassVar[list[tuple[str, dict]]]

    def whoami(self):
        self.calls.append(("whoami", {}))

    def create_repo(self, **arguments):
        self.calls.append(("create_repo", arguments))

    def upload_folder(self, **arguments):
        assert "model.safetensors" in file_names(Path(arguments["folder_path"]))
        self.calls.append(("upload_folder", arguments))


def test_a_complete_export_is_uploaded_to_a_private_repository(step, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    output = export(step, tmp_path / "out", push_to="me/reasoner")
    assert Hub.calls == [
        ("whoami", {}),
        ("create_repo", {"repo_id": "me/reasoner", "repo_type": "model", "private": True, "exist_ok": True}),
        (
            "upload_folder",
            {
                "folder_path": str(output),
                "repo_id": "me/reasoner",
                "repo_type": "model",
                "commit_message": "Export of global_step_20/actor",
            },
        ),
    ]


def test_an_impossible_upload_is_refused_before_the_export(step, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"'not a name' is not a valid repository name \(.*\): give OWNER/NAME"):
        export(step, tmp_path / "out", push_to="not a name")
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: (_ for _ in ()).throw(OSError("no token")))
    with pytest.raises(ConfigError, match=r"can't upload to 'me/reasoner' \(no token\): log in with `hf auth login`"):
        export(step, tmp_path / "out", push_to="me/reasoner")
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_keeps_the_export_and_reports_how_to_repeat_it(step, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(Hub, "upload_folder", lambda self, **arguments: (_ for _ in ()).throw(OSError("reset")))
    with pytest.raises(ConfigError, match=r"failed \(reset\): repeat with `hf upload me/reasoner .*out`"):
        export(step, tmp_path / "out", push_to="me/reasoner")
    assert (tmp_path / "out" / "config.json").is_file()
