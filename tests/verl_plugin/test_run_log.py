import subprocess
import sys

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from rgtrain.verl_plugin.run_log import run_log
with run_log(Path(sys.argv[1]) / "train.log") as terminal:
    print("from python")
    subprocess.run(["sh", "-c", "echo from a child; echo to stderr >&2"])
    print("(TaskRunner pid=7) [rgtrain] step 1\\x1b[2J\\a done")
    print("always seen", file=terminal)
print("after the run")
"""


def run(tmp_path) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    return done.stdout, (tmp_path / "train.log").read_text()


def test_the_log_has_everything_and_the_terminal_the_progress(tmp_path):
    terminal, log = run(tmp_path)
    assert all(line in log for line in ("from python", "from a child", "to stderr", "step 1"))
    assert sorted(terminal.splitlines()) == ["[  0:00] step 1 done", "after the run", "always seen"]


def test_escape_sequences_never_reach_the_terminal(tmp_path):
    terminal, _ = run(tmp_path)
    assert "\x1b" not in terminal and "\a" not in terminal


def test_a_second_run_appends_to_the_log(tmp_path):
    run(tmp_path)
    assert run(tmp_path)[1].count("from a child") == 2


def test_a_full_disk_stops_the_log_but_not_the_run():
    program = """
from pathlib import Path
from rgtrain.verl_plugin.run_log import run_log
with run_log(Path("/dev/full")) as terminal:
    for _ in range(20_000):
        print("more than a pipe holds")
    print("[rgtrain] step 1")
    print("went on", file=terminal)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "step 1" in done.stdout and "went on" in done.stdout
    assert "No space left on device" in done.stderr
