"""A run starts although another process wants the port on which its workers meet."""

import json
import os
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_other_process_takes_the_port_of_the_workers(num_workers, tiny_model, tmp_path):
    run_dir, folder = tmp_path / "run", tmp_path / "found"
    folder.mkdir()
    words = ["--config-name", "quickstart", "debug=smoke", "hardware=cpu", f"trainer.n_gpus_per_node={num_workers}"]
    words += [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={run_dir}", "plugins=[port_taker]"]
    search = os.pathsep.join([str(PROJECT_ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search, "PORT_TAKER_FOLDER": str(folder)}
    done = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert found == {str(rank): "held" for rank in range(num_workers)}
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
