"""The environment that entry points set up before they import anything else."""

import subprocess
import sys

import pytest

from rgtrain.machine.devices import num_cpus
from rgtrain.machine.environment import cpu_environment
from rgtrain.paths import PROJECT_ROOT


@pytest.mark.parametrize("command", [["train_grpo.py"], ["evaluation/evaluate_model.py", "--config", "none.yaml"]])
def test_a_python_without_the_stack_exits_and_names_the_fix(command, tmp_path):
    # With -S, Python has no site-packages.
    program = [sys.executable, "-S", str(PROJECT_ROOT / command[0]), *command[1:]]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "`bash train.sh setup`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_waiting_threads_sleep_unless_the_user_has_set_the_variables(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    wanted = {"OMP_NUM_THREADS": str(num_cpus()), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    assert cpu_environment() == wanted | {"GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("program", ["rgtrain.training.launch", "evaluation.evaluate_model"])
def test_entry_points_do_not_import_torch_or_ray_before_they_set_the_environment(program):
    # OpenMP and Ray read the environment once, when they are first imported.
    code = f"import sys, {program}; print([name for name in ('torch', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert done.stdout == "[]\n", done.stderr
