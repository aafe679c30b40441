"""The package examples/my_tasks trains a tiny model and is evaluated, by the commands of docs/bring-your-own.md."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from support.documented_metrics import undocumented

from rgtrain.paths import PROJECT_ROOT

EXAMPLE = PROJECT_ROOT / "examples" / "my_tasks"
SIZES = (
    "data.train_batch_size=4",
    "data.train_size=64",
    "data.validation_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
    "trainer.test_freq=2",
    "trainer.val_before_train=false",
    # The random model gives no right answer, so the policy climbs anyway.
    "data.curriculum.policy.patience=2",
    "+data.curriculum.policy.goal=0",
    # Besides the package, a critic, a reference model, an entropy bonus and a format reward.
    "algorithm=ppo",
    "actor_rollout_ref.actor.entropy_coeff=0.001",
    "reward=accuracy_format",
    "debug=profile",
    "global_profiler.steps=[2]",
)


class Run(NamedTuple):
    folder: Path
    words: list[str]
    records: list[dict]


def run_command(*words: str, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("example") / "run"
    words = [
        str(PROJECT_ROOT / "train_grpo.py"),
        "--config-path",
        str(EXAMPLE / "configs"),
        "--config-name",
        "my_tasks",
    ]
    words += ["hardware=cpu", f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={folder}", *SIZES]
    done = run_command(*words, folder=folder.parent)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Run(folder, words, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


def test_both_datasets_are_trained_on_with_the_own_rewards_and_policy(run):
    assert [record["step"] for record in run.records] == [1, 2]
    names = set().union(*run.records)
    assert {"train/coins/acc", "train/capitals/acc", "curriculum/coins/level"} <= names
    assert {f"train/coins/reward_{part}" for part in ("brevity", "style_one_word", "style_words")} <= names
    assert run.records[-1]["curriculum/coins/level"] >= 1
    assert {name.split("/")[1] for name in names if name.startswith("val-core/")} & {"capitals", "coins_level_0"}
    assert not undocumented(names)


def test_actor_and_critic_are_trained(run):
    for name in ("actor/grad_norm", "critic/grad_norm"):
        assert all(record[name] > 0 for record in run.records)
    assert {"critic/vf_loss", "actor/reward_kl_penalty"} <= run.records[-1].keys()


def test_generation_and_training_implement_the_same_policy_in_one_process(run):
    assert max(record["actor/rollout_gap/mean"] for record in run.records) < 0.1
    [trace] = (run.folder / "profile").glob("*_step2_*.json.gz")
    with gzip.open(trace, "rt") as events:
        names = {event.get("name") for event in json.load(events)["traceEvents"]}
    assert "vllm::unified_attention_with_output" in names
    assert any("Backward" in name for name in names if name)


def test_the_run_records_the_content_of_its_file_and_refuses_to_go_on_with_another(run, tmp_path):
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved["plugins"] == ["my_tasks"]
    capitals = saved["data"]["mixture"]["capitals"]
    assert len(capitals["sha256"]) == 64
    changed = tmp_path / "capitals.jsonl"
    changed.write_text((EXAMPLE / "my_tasks" / "capitals.jsonl").read_text().replace("Oslo", "Bergen"))
    done = run_command(
        *run.words, "trainer.total_training_steps=3", f"data.mixture.capitals.path={changed}", folder=tmp_path
    )
    assert done.returncode == 2
    assert "data.mixture.capitals.sha256" in done.stderr


def test_the_trained_model_is_evaluated_on_the_held_out_questions(run):
    checkpoint = run.folder / "checkpoints" / "global_step_2" / "actor"
    words = [str(PROJECT_ROOT / "evaluation" / "evaluate_model.py"), "--config", str(EXAMPLE / "evaluation.yaml")]
    words += ["--model", str(checkpoint), "--limit", "4", "--output-dir", str(run.folder.parent / "results")]
    done = run_command(*words, folder=run.folder.parent)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "problems seen in training: 0 of 8" in done.stdout
    [summary] = (run.folder.parent / "results").glob("*/summary.json")
    found = {one["dataset"]: one for one in json.loads(summary.read_text())["datasets"]}
    assert {name: one["num_problems"] for name, one in found.items()} == {"coins": 4, "capitals": 4}
