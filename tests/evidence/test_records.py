"""A record has everything of a run that the tables need, in a few kilobytes."""

import json
import sys
from dataclasses import replace

import pytest

from rgtrain.checkpoints.rollout_files import VALIDATION, KeptCompletion, KeptGroup, RolloutFiles
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.records import read_record, record_of_run, solved_share, write_record
from evidence.training_plan import Training

TRAINING = Training(
    model="m", task="t", arm="a", seed=3, rl_steps=2, sft_steps=1, settings={"data.mixture": {"gcd": {}}}
)


def group(dataset, number, scores):
    completions = [
        KeptCompletion("text", "4" if score else None, score, {"acc": score, "solved": float(score == 1)}, 9, "stop")
        for score in scores
    ]
    return KeptGroup(dataset, None, f"{number:x}".ljust(16, "0"), "prompt", "4", [], completions)


@pytest.fixture
def run_dir(tmp_path):
    rl, sft = tmp_path / "rl", tmp_path / "sft"
    files = RolloutFiles(rl / "rollouts", max_bytes=10**9, first_step=0)
    files.append([group("gcd", 1, [1.0, 0.0]), group("gcd", 2, [0.5, 1.0])], step=2, split=VALIDATION)
    step = {
        "timing_s/step": 0.5,
        "perf/total_num_tokens": 1200,
        "critic/score/mean": 0.51239,
        "rollout/sampled_entropy": 0.7,
        "response_length/mean": 20.04,
        "prompt_length/mean": 100.0,
    }
    of_datasets = {
        "train/gcd/num_scored": 6,
        "train/gcd/acc": 1.0,
        "train/gcd/solved": 0.5,
        "train/gcd/answered": 1.0,
        "train/sound/lcm/num_scored": 2,
        "train/sound/lcm/acc": 0.0,
        "train/sound/lcm/solved": 0.0,
        "train/sound/lcm/answered": 0.5,
    }
    lines = [{"step": number, **step, **of_datasets} for number in (1, 2)]
    (rl / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = {"commit": "c" * 40, "python": "3.11.0", "packages": {"torch": "2.11", "Verl": "0.9.1", "attrs": "1"}}
    (rl / "provenance.jsonl").write_text(json.dumps(started) + "\n")
    sft.mkdir()
    taught = {"step": 1, "timing_s/step": 0.25, "train/global_tokens": 1000, "train/loss": 1.5}
    (sft / "metrics.jsonl").write_text(json.dumps(taught) + "\n")
    return tmp_path


def made(run_dir, training=TRAINING):
    return record_of_run(
        training, run_dir, rates={"rl": 1e-5}, seconds=61.23, per_gpu=4, device="H200", sft_batch=9, commands=["x"]
    )


def test_a_record_survives_writing_and_reading(run_dir, tmp_path):
    record = made(run_dir)
    path = TRAINING.record_path(tmp_path / "results")
    write_record(path, record)
    assert read_record(path) == json.loads(json.dumps(record))
    assert path == tmp_path / "results" / "m" / "t" / "a" / "seed_3.json"
    # One line for each list.
    assert '"solved": [1, 1],' in path.read_text().replace("\n    ", "\n")


def test_a_record_has_the_metrics_of_all_steps(run_dir):
    record = made(run_dir)
    assert record["seconds"] == {"total": 61.2, "per_gpu": 4, "training": 1.2}
    assert record["tokens"] == {
        "trained": 3400,
        "trained_prompts": 1600,
        "generated": 321,
        "samples": 16,
        "sft_samples": 9,
    }
    assert record["versions"] == {"python": "3.11.0", "verl": "0.9.1", "torch": "2.11"}
    assert record["steps"]["accuracy"] == [0.75, 0.75]
    assert record["steps"]["answered"] == [0.875, 0.875]
    assert record["steps"]["reward"] == [0.512, 0.512]
    assert record["steps"]["kl"] == [None, None]
    assert record["steps"]["sft_loss"] == [1.5]


def test_a_record_has_the_outcome_of_every_problem(run_dir):
    [gcd] = made(run_dir)["evaluation"].values()
    assert gcd == {
        "samples": 2,
        "digests": ["100000000000", "200000000000"],
        "solved": [1, 1],
        "answered": [1, 2],
        "score": [0.5, 0.75],
    }
    assert solved_share(gcd) == 0.5


def test_a_run_without_all_steps_has_no_record(run_dir):
    with pytest.raises(ConfigError, match=r"lacks the metrics of steps \[3\]"):
        made(run_dir, replace(TRAINING, rl_steps=3))
