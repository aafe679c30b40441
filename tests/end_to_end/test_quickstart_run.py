"""The quickstart, end to end on a tiny model, killed after its training, restarted, and started once more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.metrics_file import validation_score
from rgtrain.checkpoints.rollout_files import read_index, read_rollouts
from rgtrain.checkpoints.trained_problems import read_trained_problems
from rgtrain.paths import PROJECT_ROOT

NUM_STEPS = 3
NUM_PROBLEMS = 8


def small_evaluation(folder: Path) -> Path:
    """Write the quickstart's evaluation with a few problems per dataset, and return its path."""
    evaluation = yaml.safe_load((PROJECT_ROOT / "evaluation" / "quickstart.yaml").read_text())
    for dataset in evaluation["categories"][0]["datasets"]:
        dataset["size"] = NUM_PROBLEMS
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(evaluation))
    return path


@pytest.fixture(scope="module")
def quickstart(tiny_model, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("quick start")
    run_dir = folder / "run"
    command = [sys.executable, "-u", str(PROJECT_ROOT / "utils" / "quickstart.py"), "--run-dir", str(run_dir)]
    command += [f"actor_rollout_ref.model.path={tiny_model}", f"data.held_out_files=['{small_evaluation(folder)}']"]
    command += [f"trainer.total_training_steps={NUM_STEPS}", "trainer.save_freq=1", "trainer.val_before_train=true"]
    command += [f"trainer.test_freq={NUM_STEPS}", "data.validation_size=4", "data.train_batch_size=4"]
    # A random model solves no problem, so it needs a reward for brevity to learn at all.
    command += [
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "+reward.parts.length={weight: 1, max_len: 16, buffer: 15}",
    ]
    command += ["trainer.logger=[tensorboard,wandb]", "hardware=cpu", "algorithm.rollout_correction.bypass_mode=false"]
    training = kill_after_training(command, folder / "killed.log")
    again = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert again.returncode == 0, f"{again.stdout}\n{again.stderr}\n{(run_dir / 'train.log').read_text()[-5000:]}"
    third = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert third.returncode == 0, third.stderr
    return SimpleNamespace(
        run_dir=run_dir, base=tiny_model, training=training, output=again.stdout, third_output=third.stdout
    )


def kill_after_training(command: list[str], log: Path) -> str:
    """Kill the quickstart when it starts its second step, and return its output."""
    with log.open("w") as file:
        process = subprocess.Popen(command, start_new_session=True, stdout=file)
    while "== 2/4 export" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return log.read_text()


def metrics(quickstart: SimpleNamespace) -> list[dict]:
    return [json.loads(line) for line in (quickstart.run_dir / "metrics.jsonl").read_text().splitlines()]


def training_steps(quickstart: SimpleNamespace) -> list[dict]:
    return [record for record in metrics(quickstart) if "timing_s/step" in record]


def test_rollouts_of_every_step_and_validation_are_kept_once(quickstart):
    blocks = list(read_rollouts(quickstart.run_dir / "rollouts", read_index(quickstart.run_dir / "rollouts")))
    assert [(block.step, block.split) for block, _ in blocks] == [
        (0, "validation"),
        (1, "training"),
        (2, "training"),
        (3, "training"),
        (3, "validation"),
    ]
    for block, groups in blocks:
        assert block.num_groups == 4
        rewards = [completion.reward for group in groups for completion in group.completions]
        advantages = [completion.advantage for group in groups for completion in group.completions]
        assert len(rewards) == 4 * (1 if block.split == "validation" else 8)
        assert all(advantage is None for advantage in advantages) == (block.split == "validation")


def test_a_killed_quickstart_continues_with_the_step_that_was_killed(quickstart):
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in quickstart.training
    assert "starting" not in quickstart.output[: quickstart.output.index("== 2/4 export")]


def test_every_step_is_logged_once(quickstart):
    assert [record["step"] for record in metrics(quickstart)] == [0, 1, 2, 3]
    assert [record["step"] for record in training_steps(quickstart)] == [1, 2, 3]


def test_the_best_checkpoint_is_the_initial_model_or_a_saved_step(quickstart):
    best = json.loads((quickstart.run_dir / "checkpoints" / "best_score.json").read_text())
    scores = {record["step"]: validation_score(record) for record in metrics(quickstart) if validation_score(record)}
    assert scores.keys() == {0, NUM_STEPS}
    # `max` prefers the earlier of two equal scores.
    assert best["step"] == max(scores, key=lambda step: scores[step][0])
    assert (best["score"], best["metric"]) == scores[best["step"]]


def test_metrics_are_logged_by_dataset_and_by_reward_part(quickstart):
    names = set().union(*metrics(quickstart))
    for dataset in ("needle_haystack", "word_sequence_reversal"):
        assert {f"train/{dataset}/{name}" for name in ("acc", "reward", "reward_solved", "zero_signal")} <= names
        assert f"val-core/{dataset}/acc/mean@1" in names


def test_sampling_and_training_have_the_same_policy(quickstart):
    assert all(record["training/rollout_probs_diff_max"] < 0.01 for record in training_steps(quickstart))


def test_the_export_is_verified_against_the_model_in_training(quickstart, tmp_path):
    said = []
    export(quickstart.run_dir, tmp_path / "exported", verify=True, say=said.append)
    assert said[0].startswith(
        "verified: the log-probabilities of 124 tokens equal those of the model in training within"
    )


def test_the_exported_model_has_trained_weights_of_the_base_model(quickstart):
    exported, base = (
        load_file(folder / "model.safetensors")
        for folder in (quickstart.run_dir / f"hf_step_{NUM_STEPS}", quickstart.base)
    )
    assert exported.keys() == base.keys()
    assert any(not exported[name].equal(base[name].to(exported[name].dtype)) for name in base)


def test_base_and_trained_model_are_evaluated_on_the_same_held_out_problems(quickstart):
    summaries = [json.loads(path.read_text()) for path in quickstart.run_dir.glob("evaluation/*/summary.json")]
    assert len(summaries) == 2
    assert all(summary["overall"]["num_problems"] == 2 * NUM_PROBLEMS for summary in summaries)


def test_the_evaluation_counts_the_problems_that_the_model_was_trained_on(quickstart):
    exported = quickstart.run_dir / f"hf_step_{NUM_STEPS}"
    # All steps are recorded, and few of their problems are equal.
    assert 4 * NUM_STEPS - 1 <= len(read_trained_problems(exported)) <= 4 * NUM_STEPS
    assert "problems seen in training: unknown" in quickstart.output
    assert f"problems seen in training: 0 of {2 * NUM_PROBLEMS}" in quickstart.output


def test_the_quickstart_ends_with_one_table_and_the_paths_of_its_results(quickstart):
    table = quickstart.output[quickstart.output.rindex("dataset ") :]
    assert all(
        word in table
        for word in ("problems", "before", "after", "needle_haystack", "word_sequence_reversal", "overall")
    )
    for place in (f"checkpoints/global_step_{NUM_STEPS}", f"hf_step_{NUM_STEPS}", "evaluation", "report.html"):
        assert str(quickstart.run_dir / place) in table
    assert "python evaluation/compare_models.py" in table


def test_the_training_prints_held_out_accuracy_and_leaves_the_commands_to_the_quickstart(quickstart):
    training = quickstart.training[: quickstart.training.index("== 2/4 export")]
    assert f"held-out accuracy %     before  after step {NUM_STEPS}".split() == next(
        line.split() for line in training.splitlines() if line.startswith("held-out accuracy")
    )
    assert "load_fsdp_to_hf.py" not in training


def test_a_finished_quickstart_only_prints_its_table_again(quickstart):
    assert f"has finished its {NUM_STEPS} steps" in quickstart.third_output
    assert "starting" not in quickstart.third_output
    assert quickstart.third_output.splitlines()[-7:] == quickstart.output.splitlines()[-7:]


def test_tracking_needs_no_login(quickstart):
    assert list(quickstart.run_dir.glob("wandb/offline-run-*"))
    assert list(quickstart.run_dir.glob("tensorboard/events.*"))
    assert f"wandb sync '{quickstart.run_dir}/wandb'/offline-run-*" in quickstart.training


def test_trackers_name_the_run_after_its_folder_and_tag_it_with_seed_and_experiment(quickstart):
    config = yaml.safe_load((quickstart.run_dir / "config.yaml").read_text())
    assert config["trainer"]["experiment_name"] == quickstart.run_dir.name
    [*_, recorded] = quickstart.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    # The record holds each text with its length before it. The configuration has these words in longer texts.
    for text in (b"seed_1", b"quickstart", b"run"):
        assert bytes([len(text)]) + text in recorded.read_bytes()


def test_the_run_folder_has_everything_to_repeat_the_run(quickstart):
    config = yaml.safe_load((quickstart.run_dir / "config.yaml").read_text())
    assert config["trainer"]["total_training_steps"] == NUM_STEPS
    assert "step 3/3" in (quickstart.run_dir / "train.log").read_text()
    [start] = [json.loads(line) for line in (quickstart.run_dir / "provenance.jsonl").read_text().splitlines()]
    assert "rgtrain/__main__.py train --config-name quickstart" in start["command"]
    assert start["packages"]["verl"]
