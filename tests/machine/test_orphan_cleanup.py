"""A run leaves no processes and files behind, however it ends, and the clean-up removes only those of the run."""

import os
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from rgtrain.machine import orphan_cleanup
from rgtrain.machine.orphan_cleanup import private_folder, processes_of, short_parent
from rgtrain.paths import PROJECT_ROOT

# A run that is hard to clean up after: its child ignores signals, starts a new session, and has a child itself.
PROGRAM = """
import os, subprocess, sys, time
from multiprocessing import resource_tracker, shared_memory
from rgtrain.machine.orphan_cleanup import RUN_ID, clean_up_after_this_process
folder = clean_up_after_this_process()
(folder / "session").mkdir()
stubborn = "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " \
    "subprocess.Popen(['sleep', '600']); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
memory = shared_memory.SharedMemory(create=True, size=1000)
# Python's resource tracker would remove the segment, but there is no tracker for segments of C libraries.
resource_tracker.unregister(memory._name, "shared_memory")
time.sleep(1)
print(os.environ[RUN_ID], folder, memory.name, flush=True)
ENDING
"""
ENDINGS = {"a normal end": "", "an exception": "raise RuntimeError('a bug')", "SIGKILL": "time.sleep(600)"}


@pytest.fixture
def others_memory():
    memory = SharedMemory(create=True, size=1000)
    yield Path("/dev/shm", memory.name)
    memory.close()
    memory.unlink()


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_process_and_no_file_is_left_after(ending, others_memory):
    program = PROGRAM.replace("ENDING", ENDINGS[ending])
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    run_id, folder, segment = process.stdout.readline().split()
    assert len(list(processes_of(run_id))) >= 3
    assert Path("/dev/shm", segment).exists()
    if ending == "SIGKILL":
        process.kill()
    process.wait()
    left = [Path(folder), Path("/dev/shm", segment)]
    wait_until(lambda: not list(processes_of(run_id)) and not any(path.exists() for path in left))
    assert others_memory.exists()


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def long_folder(tmp_path, monkeypatch) -> Path:
    """Set TMPDIR to a path of more than 116 bytes, as some schedulers do."""
    folder = tmp_path / ("x" * 116)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(orphan_cleanup.tempfile, "tempdir", None)
    return folder


def test_the_folder_for_sockets_has_a_short_path_even_if_tmpdir_has_a_long_one(long_folder):
    program = """
import os, socket, stat
from multiprocessing.connection import Listener
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process, private_folder
folder = clean_up_after_this_process()
assert folder == private_folder()
# As long as the paths of Ray can become.
deep = folder / "r/session_2026-01-31_23-59-59_123456_4194304/sockets"
deep.mkdir(parents=True)
for name in ("plasma_store", "raylet"):
    socket.socket(socket.AF_UNIX).bind(str(deep / name))
Listener(family="AF_UNIX").close()
print(oct(stat.S_IMODE(folder.stat().st_mode)))
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "0o700\n", done.stderr
    assert list(long_folder.iterdir()) == []


def test_a_folder_on_a_full_disk_is_avoided(tmp_path, monkeypatch):
    monkeypatch.setattr(orphan_cleanup.tempfile, "tempdir", "/tmp")
    room = orphan_cleanup.shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    monkeypatch.setattr(
        orphan_cleanup.shutil, "disk_usage", lambda path: room._replace(free=0) if path == "/tmp" else room
    )
    assert short_parent() == Path("/var/tmp")


def test_the_lack_of_a_folder_for_sockets_is_a_short_error(long_folder, monkeypatch):
    monkeypatch.setattr(orphan_cleanup, "_SHORT_PARENTS", ())
    with pytest.raises(
        SystemExit, match="error: no writable folder .* short enough for sockets .*TMPDIR is .* at most 25 "
    ):
        short_parent()


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    monkeypatch.setenv(orphan_cleanup.FOLDER, str(own))
    assert private_folder() == own
    own.chmod(0o777)
    other = private_folder()
    assert other != own and private_folder() == other
