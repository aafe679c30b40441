"""The benchmark of several GPUs starts TRL with one rank per GPU, and TRL's ranks share one step."""

import argparse
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
sys.path.insert(0, str(PROJECT_ROOT / "benchmarks" / "sides"))
import ours
import record
import scaling

SIDE = PROJECT_ROOT / "benchmarks" / "sides" / "trl_grpo.py"
TRL = Path(sys.prefix) / "trl"
CASE = scaling.CASES["1.5b_4gpu_64_trl"]


def run(program, *words, **environment):
    variables = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)} | environment
    return subprocess.run([sys.executable, str(program), *words], env=variables, capture_output=True, text=True)


def options(tmp_path, **changes):
    given = {"cases": None, "trl_path": None, "overrides": [], "models": tmp_path, "out": tmp_path / "out"}
    return argparse.Namespace(**{**given, "steps": 1, "warmup": 0, "variant": None, **changes})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "3"], "--gpus 3 does not divide a step's 16 samples; choose a divisor"),
        (["--gpus", "0"], "--gpus 0 does not divide a step's 16 samples; choose a divisor"),
        (["--gpus", "4", "--micro-batch", "8"], "does not divide a step's 4 samples per GPU; choose a divisor of 4"),
        (["--gpus", "1", "--micro-batch", "0"], "--micro-batch 0 does not divide a step's 16 samples per GPU"),
    ],
)
def test_samples_that_ranks_cannot_share_are_refused(tmp_path, words, message):
    sizes = ["--batch-size", "4", "--group-size", "4", "--micro-batch", "4"]
    paths = ["--model", "none", "--prompts", "none.json", "--out", str(tmp_path / "result.json")]
    done = run(SIDE, *sizes, *paths, *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_case_of_trl_needs_trl_if_it_is_asked_for(tmp_path):
    words = ["--models", str(tmp_path), "--out", str(tmp_path / "out"), "--cases", CASE.name]
    done = run(PROJECT_ROOT / "benchmarks" / "scaling.py", *words)
    assert done.returncode == 2
    assert f"{CASE.name} cannot run: it needs --trl-path, the folder that TRL is installed in" in done.stderr


def test_the_case_of_trl_is_left_out_without_trl(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "num_gpus", lambda: 4)
    with_trl = scaling.chosen_cases(options(tmp_path, trl_path="trl"), argparse.ArgumentParser())
    without = scaling.chosen_cases(options(tmp_path), argparse.ArgumentParser())
    assert set(with_trl) - set(without) == {CASE.name}
    assert capsys.readouterr().out.startswith(f"{CASE.name} is left out: it needs --trl-path")


def test_trl_gets_the_same_prompts_and_sizes(tmp_path, tiny_model):
    (tmp_path / "1.5b").symlink_to(tiny_model)
    arguments = options(tmp_path)
    scaling.train_step.work(arguments).mkdir(parents=True)
    words = scaling.side_command(CASE, arguments)
    assert words[1] == str(SIDE)
    pairs = dict(pairwise(words))
    sizes = {"--gpus": "4", "--batch-size": "64", "--group-size": "8", "--max-tokens": "1024"}
    assert sizes.items() <= pairs.items()
    assert len(json.loads(Path(pairs["--prompts"]).read_text())) == 64
    assert "--messages" not in words


def test_a_result_without_the_time_of_the_update_has_a_row(tmp_path):
    medians = {"step_s": 16.0, "generate_s": 9.0, "sync_weights_s": 0.1, "num_new_tokens": 64 * 8 * 1024}
    result = record.write_record(tmp_path / f"{CASE.name}.json", raw={}, derived={"medians": medians})
    [row] = scaling.rows({CASE.name: result})
    assert scaling.cells(row) == [CASE.name, "16", "9", "", "0.1", "", "", "8,192"]


@pytest.mark.parametrize("idle_share", [None, 0.25])
def test_the_idle_share_of_several_engines_is_recorded(idle_share):
    step = {
        "timing_s/gen": 2.0,
        "timing_s/update_actor": 1.0,
        "timing_s/update_weights": 0.1,
        "response_length/mean": 8,
    }
    step |= {} if idle_share is None else {"rollout/engine_idle_share": idle_share}
    recorded = ours.step_record(step, num_samples=4)
    assert recorded.get("engine_idle_share") == idle_share
    assert recorded["new_tokens_per_s"] == 16


@pytest.mark.slow
def test_two_ranks_share_the_samples_of_each_step(tmp_path, tiny_model):
    if not TRL.is_dir():
        pytest.skip("TRL is not installed; see requirements-trl.txt")
    # 260 is " the", which the tokenizer does not merge. The sum of lengths shows which prompts a step had.
    prompts = [[260] * 2**power for power in range(8)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    words = ["--model", str(tiny_model), "--prompts", str(tmp_path / "prompts.json"), "--gpus", "2"]
    words += ["--batch-size", "4", "--group-size", "4", "--max-tokens", "8", "--ignore-eos", "--micro-batch", "4"]
    words += ["--steps", "2", "--warmup", "1", "--checkpointing", "--vllm-memory", "0.1"]
    variables = {"PYTHONPATH": os.pathsep.join([str(TRL), str(PROJECT_ROOT)]), "VLLM_CPU_KVCACHE_SPACE": "1"}
    variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    result = tmp_path / "result.json"
    program = PROJECT_ROOT / "tests" / "support" / "trl_side_on_cpu.py"
    done = run(program, *words, "--out", str(result), **variables)
    assert done.returncode == 0, done.stderr[-5000:]
    written = record.read_record(result)
    assert written["settings"]["gpus"] == 2
    steps = written["raw"]["per_step"]
    assert steps["num_new_tokens"] == [4 * 4 * 8] * 2
    assert steps["mean_response_length"] == [8, 8]
    assert steps["num_prompt_tokens_with_repeats"] == [4 * (1 + 2 + 4 + 8), 4 * (16 + 32 + 64 + 128)]
    # One rank reports.
    assert done.stdout.count("step 0:") == done.stdout.count("step 1:") == 1
