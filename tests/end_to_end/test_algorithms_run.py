"""Every algorithm, and LoRA, trains a tiny model for two steps on this machine's hardware."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documented_metrics import undocumented

from rgtrain.config import catalogue
from rgtrain.paths import PROJECT_ROOT

# Metrics that only runs of this algorithm have.
OWN_METRICS = {
    "ppo": {"critic/vf_loss", "critic/grad_norm", "actor/reward_kl_penalty"},
    "rloo": {"actor/reward_kl_penalty"},
    "reinforce_plus_plus": {"actor/reward_kl_penalty"},
    "grpo": {"actor/kl_loss"},
}
# Most algorithms differ only in formulas. Without --slow, test_example_package.py has the one with a critic, and
# test_resume.py has dynamic sampling.
pytestmark = pytest.mark.slow
ALGORITHMS = [*map(catalogue.name_of, catalogue.choices("algorithm"))]


def trained(model: Path, run_dir: Path, *words: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(PROJECT_ROOT / "train_grpo.py"),
        "--config-name",
        "quickstart",
        "debug=smoke",
        *words,
    ]
    command += [f"actor_rollout_ref.model.path={model}", f"run_dir={run_dir}"]
    # The quickstart skips the actor's old log-probabilities, which these tests need.
    command += ["algorithm.rollout_correction.bypass_mode=false"]
    path = os.pathsep.join([str(PROJECT_ROOT / "tests" / "experiments"), str(PROJECT_ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, cwd=run_dir.parent, env=environment)


def steps(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


VARIED = r"+reward.parts={pkg\://varied_reward.letters: {weight: 1}}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_trains_two_steps(tiny_model, tmp_path, algorithm):
    words = [f"algorithm={algorithm}", VARIED]
    if algorithm == "dapo":
        # A random model solves no problem, so groups must be compared by their reward.
        words.append("algorithm.filter_groups.metric=reward")
    done = trained(tiny_model, tmp_path / "run", *words)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    records = steps(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["actor/grad_norm"] > 0 for record in records)
    assert OWN_METRICS.get(algorithm, set()) <= set(records[-1])
    assert not undocumented({name for record in records for name in record})
    # Generation and training implement the same policy.
    assert max(record["actor/rollout_gap/mean"] for record in records) < 0.1


def test_adapters_are_trained_and_used_by_vllm(tiny_model, tmp_path):
    words = ["model=[smollm2_135m,lora]", "algorithm=gspo", "actor_rollout_ref.actor.optim.lr=0.01", VARIED]
    done = trained(tiny_model, tmp_path / "run", *words)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    first, second = steps(tmp_path / "run")
    assert first["actor/grad_norm"] > 0
    # Without the trained adapters, vLLM's policy would differ from the trained one in the second step.
    assert second["actor/rollout_gap/mean"] < 0.1


def test_dynamic_sampling_gives_up_if_all_groups_have_equal_rewards(tiny_model, tmp_path):
    done = trained(tiny_model, tmp_path / "run", "algorithm=dapo")
    assert done.returncode == 1
    assert "dynamic sampling drew 10 batches of 4 prompts for one" in done.stdout + done.stderr
    assert "algorithm.filter_groups.max_num_gen_batches" in done.stdout + done.stderr


def test_a_run_whose_first_gap_exceeds_the_limit_stops_and_saves_nothing(tiny_model, tmp_path):
    # Rounding alone makes a larger gap.
    done = trained(tiny_model, tmp_path / "run", VARIED, "trainer.max_rollout_gap=1e-9", "trainer.save_freq=1")
    assert done.returncode == 1
    assert "the rollout gap of the first update is" in done.stdout and "try `engine=verl`" in done.stdout
    assert re.search(
        r"error: RolloutMismatch: vLLM and the training engine disagree by .* nats per token, above 1e-09 "
        r"\(in update of step 1\); no checkpoint saved",
        done.stdout,
    )
    assert not list((tmp_path / "run").rglob("global_step_*"))
