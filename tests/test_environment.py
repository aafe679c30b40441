"""What entry points see to before anything else."""

import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT


@pytest.mark.parametrize("command", [["train_grpo.py"], ["evaluation/evaluate_model.py", "--config", "none.yaml"]])
def test_a_python_without_the_stack_is_told_how_to_get_it(command, tmp_path):
    # -S: without site-packages.
    program = [sys.executable, "-S", str(PROJECT_ROOT / command[0]), *command[1:]]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "`bash train.sh setup`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
