"""A process of Ray imports the packages of the run before its first task."""

import os
import subprocess
import sys
from pathlib import Path

from rgtrain.training.worker_setup import COLLECT_RARELY, plugins_environment


def set_up(*plugins: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Set up a process as Ray does. Only the launching process knows `folder`."""
    code = "import sys; from rgtrain.training.worker_setup import set_up_worker; set_up_worker(); "
    code += "print(*{'reasoning_gym', 'worker_plugin'} & set(sys.modules))"
    sys.path.append(str(folder))
    try:
        environment = os.environ | plugins_environment(plugins)
    finally:
        sys.path.remove(str(folder))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_a_worker_imports_a_package_that_lies_in_a_folder_of_the_launching_process(tmp_path):
    (tmp_path / "worker_plugin.py").touch()
    assert "worker_plugin" in set_up("worker_plugin", folder=tmp_path).stdout


def test_a_worker_on_a_machine_without_the_package_says_so():
    assert "plugin 'no_such_package' cannot be imported" in set_up("no_such_package").stderr


def test_a_worker_of_a_run_without_plugins_does_not_wait_for_reasoning_gym():
    assert set_up().stdout.strip() == ""


def test_only_workers_that_say_when_they_have_started_collect_garbage_rarely(monkeypatch):
    def thresholds(code):
        command = [sys.executable, "-c", f"import gc; {code}; print(gc.get_threshold())"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    set_up = "from rgtrain.training.worker_setup import set_up_worker; set_up_worker()"
    # Other tests change the thresholds of this process.
    usual = thresholds("pass")
    assert thresholds(set_up) == usual
    monkeypatch.setenv(COLLECT_RARELY, "1")
    assert thresholds(set_up) not in (usual, "")
