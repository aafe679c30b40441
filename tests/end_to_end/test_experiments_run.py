"""Each kind of experiment trains a tiny model with tiny sizes on this machine's hardware."""

import gzip
import json
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

SIZES = (
    "data.train_batch_size=4",
    "data.train_size=64",
    "data.validation_size=4",
    "data.max_prompt_length=1024",
    "data.max_response_length=16",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "trainer.total_training_steps=3",
    "trainer.save_freq=-1",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
)


@pytest.mark.parametrize(
    "experiment",
    [
        # test_example_package.py covers a reference model, an entropy bonus and a format reward on a CPU.
        pytest.param("qwen2.5_1.5b_grpo", marks=pytest.mark.gpu),
        pytest.param("quickstart", marks=pytest.mark.gpu),
        pytest.param("intra_generalisation/algorithmic_qwen_3b", marks=pytest.mark.gpu),
        pytest.param("external_generalisation/math_qwen_3b", marks=pytest.mark.gpu),
    ],
)
def test_an_experiment_trains_three_steps(tiny_model, tmp_path, experiment):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", experiment, *SIZES]
    command += [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={tmp_path / 'run'}", "debug=profile"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    # Generation and training implement the same policy.
    assert max(record["actor/rollout_gap/mean"] for record in records) < 0.1
    # Generation and training share a process, so one trace covers both.
    [trace] = (tmp_path / "run" / "profile").glob("*_step3_*.json.gz")
    with gzip.open(trace, "rt") as events:
        names = {event.get("name") for event in json.load(events)["traceEvents"]}
    assert "vllm::unified_attention_with_output" in names
    assert any("Backward" in name for name in names if name)
