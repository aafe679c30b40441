"""The temporary model of an evaluation is removed however the evaluation ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rgtrain.errors import ConfigError
from rgtrain.evaluation.temporary_models import PREFIX, remove_abandoned, temporary_model_folder
from rgtrain.paths import PROJECT_ROOT

# In a background job of a shell, SIGINT is ignored at first.
PROGRAM = """
import signal
import time
from rgtrain.evaluation.temporary_models import temporary_model_folder
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
signal.signal(signal.SIGINT, signal.default_int_handler)
CLEAN_UP
with temporary_model_folder(num_bytes=1) as folder:
    (folder / "model.safetensors").write_text("weights")
    print(folder, flush=True)
    ENDING
"""


@pytest.fixture
def start(tmp_path):
    """Start a process that has a temporary model in `tmp_path`, and return it with the model's folder."""
    processes = []

    def start(*, clean_up: bool, ending: str = "time.sleep(600)") -> tuple[subprocess.Popen, Path]:
        program = PROGRAM.replace("CLEAN_UP", "clean_up_after_this_process()" if clean_up else "")
        process = subprocess.Popen(
            [sys.executable, "-c", program.replace("ENDING", ending)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "TMPDIR": str(tmp_path)},
        )
        processes.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_until_removed(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_clean_up_process_removes_the_model_of_a_killed_evaluation(start, number):
    process, folder = start(clean_up=True)
    assert (folder / "model.safetensors").exists()
    process.send_signal(number)
    process.wait()
    wait_until_removed(folder)


def test_a_crash_removes_the_model(start):
    process, folder = start(clean_up=False, ending="raise RuntimeError")
    assert process.wait() == 1
    assert folder.name.startswith(PREFIX) and not folder.exists()


def test_the_next_evaluation_removes_the_model_of_a_dead_one_and_keeps_that_of_a_running_one(start, tmp_path):
    dead, abandoned = start(clean_up=False)
    _, in_use = start(clean_up=False)
    others = tmp_path / "results"
    others.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(others)
    dead.kill()
    dead.wait()
    assert (abandoned / "model.safetensors").exists()
    remove_abandoned(tmp_path)
    assert not abandoned.exists()
    assert (in_use / "model.safetensors").exists()
    assert others.exists()


def test_a_disk_without_space_is_reported_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"temporary copy of the model of about 1000000000.00 GB, .*: set TMPDIR to"),
        temporary_model_folder(num_bytes=10**18),
    ):
        pass
    assert not list(tmp_path.iterdir())
