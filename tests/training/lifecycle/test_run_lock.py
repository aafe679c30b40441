"""One process at a time uses a run's folder. Another start fails, or waits if that process is stopping."""

import json
import os
import subprocess
import sys
import threading

import pytest

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.lifecycle import run_lock
from rgtrain.training.lifecycle.run_lock import FILE, locked_run

HOLDER = """
import os, sys, time
from pathlib import Path
from rgtrain.errors import ConfigError
from rgtrain.training.lifecycle.run_lock import locked_run
try:
    with locked_run(Path(sys.argv[1]), wait_s=0, say=print) as lock:
        PROGRAM
except ConfigError as error:
    print("refused", flush=True)
"""


def start(run_dir, program: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-c", HOLDER.replace("PROGRAM", program), str(run_dir)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def holder(run_dir, program: str = "print('held', flush=True); input()") -> subprocess.Popen:
    process = start(run_dir, program)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_start_names_the_holder_and_does_not_write(tmp_path):
    first = holder(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    words = rf"in use by process {first.pid} on .*, which started at \d.*run_dir=ANOTHER"
    with pytest.raises(ConfigError, match=words), locked_run(tmp_path, wait_s=60, say=print):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [FILE] and (tmp_path / FILE).read_bytes() == before
    first.communicate("")


def test_the_lock_is_free_however_its_holder_ended(tmp_path):
    killed = holder(tmp_path)
    killed.kill()
    killed.wait()
    with locked_run(tmp_path, wait_s=0, say=print):
        pass
    with locked_run(tmp_path, wait_s=0, say=print):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_start_waits_for_a_run_that_is_stopping(tmp_path):
    stopping = holder(tmp_path, "lock.mark_stopping(); print('held', flush=True); input()")
    said = []

    def say(line: str) -> None:
        said.append(line)
        stopping.stdin.write("\n")
        stopping.stdin.flush()

    with locked_run(tmp_path, wait_s=60, say=say):
        pass
    stopping.communicate()
    assert len(said) == 1 and f"process {stopping.pid} on" in said[0] and "waiting for its end, up to 60 s" in said[0]


def test_a_start_does_not_wait_longer_than_the_limit(tmp_path):
    stopping = holder(tmp_path, "lock.mark_stopping(); print('held', flush=True); input()")
    with pytest.raises(ConfigError, match="it did not stop within 0.5 s"), locked_run(tmp_path, wait_s=0.5, say=print):
        pass
    stopping.communicate("")


@pytest.mark.parametrize("child", ["os.fork() or time.sleep(9)", "subprocess.Popen(['sleep', '9'])"])
def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path, child):
    program = f"import subprocess; child = {child}; child and (print('held', flush=True), os._exit(0))"
    process = start(tmp_path, program)
    assert process.stdout.readline() == "held\n"
    process.wait()
    with locked_run(tmp_path, wait_s=0, say=print):
        pass


def test_one_of_many_simultaneous_starts_gets_a_new_folder(tmp_path):
    starts = [start(tmp_path / "new" / "run", "print('held', flush=True); input()") for _ in range(4)]
    said = []
    readers = [threading.Thread(target=lambda s=s: said.append(s.stdout.readline())) for s in starts]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for process in starts:
        process.communicate("\n")
    assert sorted(said) == ["held\n", "refused\n", "refused\n", "refused\n"]


@pytest.mark.parametrize("record", ["", "null", '{"pid"', '{"pid": 4194305, "host": "HERE", "state": "running"}'])
def test_an_unfinished_or_outdated_record_is_ignored(tmp_path, monkeypatch, record):
    monkeypatch.setattr(run_lock, "_UNNAMED_SECONDS", 0.3)
    first = holder(tmp_path)
    (tmp_path / FILE).write_text(record.replace("HERE", run_lock.socket.gethostname()))
    said = []
    with pytest.raises(ConfigError, match="in use by"), locked_run(tmp_path, wait_s=60, say=said.append):
        pass
    assert said == []
    first.communicate("")


def test_a_file_system_without_locks_leads_to_a_warning(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    said = []
    with locked_run(tmp_path, wait_s=0, say=said.append):
        pass
    assert len(said) == 1 and said[0].startswith("warning: ") and "has no locks (No locks available)" in said[0]


def test_the_message_names_the_setting_of_a_folder_in_use(tmp_path):
    first = holder(tmp_path)
    words = rf"trainer.default_local_dir={tmp_path} is in use .* or set trainer.default_local_dir=ANOTHER"
    locked = locked_run(tmp_path, wait_s=0, say=print, setting="trainer.default_local_dir")
    with pytest.raises(ConfigError, match=words), locked:
        pass
    first.communicate("")
