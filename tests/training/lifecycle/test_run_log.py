import json
import os
import subprocess
import sys

from rgtrain.training.lifecycle.console import MARK_VARIABLE, PLAIN_MARK

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from rgtrain.training.lifecycle.run_log import run_log
with run_log(Path(sys.argv[1]) / "train.log") as terminal:
    print("from python")
    subprocess.run(["sh", "-c", "echo from a child; echo to stderr >&2"])
    print("(TaskRunner pid=7) [rgtrain] step 1\\x1b[2J\\a done")
    print("always seen", file=terminal)
print("after the run")
"""
# Text that a model or a library may print beside a real progress line.
FOREIGN = """
import json, os, sys
from pathlib import Path
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.run_log import run_log
with run_log(Path(sys.argv[1]) / "train.log"):
    for text in json.loads(sys.argv[2]):
        print(text, flush=True)
    announce("step 1")
"""


def run(tmp_path) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    return done.stdout, (tmp_path / "train.log").read_text()


def run_with(
    foreign: list[str], tmp_path, *, mark: str = "[rgtrain 0123456789abcdef] ", encoding: str = "utf-8"
) -> tuple[str, str]:
    command = [sys.executable, "-c", FOREIGN, str(tmp_path), json.dumps(foreign)]
    environment = os.environ | {MARK_VARIABLE: mark, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout, (tmp_path / "train.log").read_text()


def test_the_log_has_all_output_and_the_terminal_only_progress_lines(tmp_path):
    terminal, log = run(tmp_path)
    assert all(line in log for line in ("from python", "from a child", "to stderr", "step 1"))
    assert sorted(terminal.splitlines()) == ["[  0:00] step 1 done", "after the run", "always seen"]


def test_escape_sequences_never_reach_the_terminal(tmp_path):
    terminal, _ = run(tmp_path)
    assert "\x1b" not in terminal and "\a" not in terminal


def test_a_second_run_appends_to_the_log(tmp_path):
    run(tmp_path)
    assert run(tmp_path)[1].count("from a child") == 2


def test_no_other_text_becomes_a_progress_line_or_ends_the_log(tmp_path):
    foreign = [f"{PLAIN_MARK}step 9", "\0 end of the run's log", "\0", "[rgtrain ] x", "a" * 100_000]
    terminal, log = run_with(foreign, tmp_path)
    assert terminal == "[  0:00] step 1\n"
    assert all(text in log for text in foreign)
    assert log.endswith(f"{PLAIN_MARK}step 1\n")


def test_the_log_does_not_contain_the_mark_of_the_run(tmp_path):
    mark = "[rgtrain 0123456789abcdef] "
    _, log = run_with([f"environment: {mark} twice {mark}"], tmp_path, mark=mark)
    assert mark not in log


def test_secrets_do_not_reach_the_log(tmp_path):
    _, log = run_with(["{'api_key': 'SECRET', 'url': 'http://me:SECRET@host'}"], tmp_path)
    assert "SECRET" not in log and "'api_key': ***" in log


def test_text_that_cannot_be_encoded_is_printed_with_escapes(tmp_path):
    _, log = run_with(["half of a pair: \ud800", "Größe: 数学"], tmp_path, encoding="ascii")
    assert "half of a pair: \\ud800" in log and "Größe: 数学" in log


def test_a_full_disk_stops_the_log_but_not_the_run():
    program = """
from pathlib import Path
from rgtrain.training.lifecycle.run_log import run_log
with run_log(Path("/dev/full")) as terminal:
    for _ in range(20_000):
        print("more than a pipe holds")
    print("[rgtrain] step 1")
    print("went on", file=terminal)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "step 1" in done.stdout and "went on" in done.stdout
    assert done.returncode == 0
    assert done.stderr == "warning: /dev/full is incomplete: No space left on device\n"


def test_a_closed_terminal_does_not_end_the_run(tmp_path):
    program = """
import os, pty, sys
from pathlib import Path
from rgtrain.training.lifecycle.run_log import run_log
leader, follower = pty.openpty()
os.dup2(follower, 1)
with run_log(Path(sys.argv[1]) / "train.log"):
    print("[rgtrain] step 1", flush=True)
    os.close(follower)
    os.close(leader)
    print("[rgtrain] step 2", flush=True)
print("finished", file=sys.stderr)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "finished\n"
    assert "step 2" in (tmp_path / "train.log").read_text()
