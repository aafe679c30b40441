"""Estimated durations agree with the measured steps, and every constant stands in its file of results."""

import json
from dataclasses import replace
from functools import cache
from statistics import median

import pytest
from support.experiments import plain_project_experiment

from rgtrain.config.run_config import RunConfig
from rgtrain.machine.devices import Gpu
from rgtrain.models.model_shapes import SHAPES
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight import duration
from rgtrain.preflight.duration import (
    CPU_STEP,
    LARGE_GPU_STEP,
    SMALL_GPU_STEP,
    Duration,
    duration_of,
    duration_warnings,
)
from rgtrain.preflight.sizes import ModelSize

RESULTS = PROJECT_ROOT / "benchmarks" / "results"
SMALL = ModelSize.of(SHAPES["smollm2-135m"])
LARGE = ModelSize.of(SHAPES["qwen2.5-1.5b"])


def medians(source: str) -> dict[str, float]:
    """Return the medians of a result file, without its first steps."""
    record = json.loads((RESULTS / source).read_text())
    if "medians" in record["derived"]:
        return record["derived"]["medians"]
    return {name: median(values[3:]) for name, values in record["raw"]["steps"].items() if name.endswith("_s")}


@pytest.mark.parametrize("step", [CPU_STEP, SMALL_GPU_STEP, LARGE_GPU_STEP], ids=lambda step: step.source)
def test_a_measured_step_has_the_figures_of_its_file(step):
    found = medians(step.source)
    given = {"step_s": step.step, "generate_s": step.generate, "update_s": step.update, "sync_weights_s": step.sync}
    assert given == pytest.approx({name: found[name] for name in given})
    size = LARGE if step is LARGE_GPU_STEP else SMALL
    assert step.num_parameters == size.total
    assert LARGE.kv_cache(tensor_parallel=1) == duration._LARGE_KV_BYTES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run's configuration, whose folder is empty."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return cache(lambda name, *words: RunConfig.of(plain_project_experiment(name, folder, *words)))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(duration, "num_cpus", lambda: 2)


GPU = "hardware=1x141gb"
SIZES = {
    "quickstart_gpu": ("quickstart_gpu", SMALL, [GPU], "quickstart_gpu/seed_1.json"),
    "small": (
        "quickstart",
        SMALL,
        [
            GPU,
            *("data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=64"),
            *("data.max_prompt_length=102", "data.max_response_length=64"),
            *("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=65536",),
            "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        ],
        "train_step/small/ours.json",
    ),
    "large": (
        "quickstart",
        LARGE,
        [
            GPU,
            *("data.train_batch_size=32", "actor_rollout_ref.actor.ppo_mini_batch_size=32"),
            *("data.max_prompt_length=299", "data.max_response_length=1024"),
            *("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8960",),
            "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        ],
        "train_step/large/ours.json",
    ),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_step_on_a_gpu_is_estimated_within_a_factor_of_two(run, case):
    name, size, words, source = SIZES[case]
    estimated = duration_of(run(name, *words), size)
    assert isinstance(estimated, Duration)
    assert 0.5 < estimated.step_s / medians(source)["step_s"] < 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_step_on_a_cpu_is_estimated_within_a_factor_of_two(run, two_cores, seed):
    estimated = duration_of(run("quickstart", "hardware=cpu"), SMALL)
    assert 0.5 < estimated.step_s / medians(f"quickstart_cpu/seed_{seed}.json")["step_s"] < 2
    assert str(estimated).startswith(
        "about 15 s per step, 6 min in all (scaled from 0.13 billion parameters on 2 cores"
    )


def test_llama_on_a_cpu_gets_a_warning_of_days(run, two_cores):
    config = run("llama3.1_1b_grpo", "hardware=cpu")
    [warning] = duration_warnings(config, ModelSize.of(SHAPES["llama3.2-1b"]))
    assert "days; choose a GPU, the experiment quickstart, a smaller model (model=)" in warning
    assert duration_warnings(run("quickstart", "hardware=cpu"), SMALL) == []


def test_more_gpus_and_faster_ones_take_less_time(run):
    size = ModelSize.of(SHAPES["qwen2.5-3b"])
    seconds = [
        duration_of(run("intra_generalisation/games_qwen_3b", f"hardware={name}"), size).step_s
        for name in ("2x48gb", "1x80gb", "4x80gb", "8x80gb")
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_prompts_that_are_not_shared_take_longer_and_experts_that_are_not_used_cost_little(run, two_cores):
    config = run("quickstart", "hardware=cpu")
    plain = duration_of(config, SMALL).step_s
    assert duration_of(config, replace(SMALL, shares_prompts=False)).step_s > 2 * plain
    assert duration_of(config, replace(SMALL, stored_intermediate=8 * SMALL.intermediate)).step_s < 1.2 * plain


def test_an_update_of_groups_above_the_token_budget_counts_the_parts_that_they_are_split_into(run):
    group_tokens = 384 + 8 * 24
    whole, split = (
        duration_of(run("quickstart_gpu", GPU, f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={budget}"), SMALL)
        for budget in (group_tokens, group_tokens - 1)
    )
    # Fixed costs of a micro-batch dominate a step of the small model.
    assert split.step_s == pytest.approx(2 * whole.step_s, rel=0.05)


def test_an_estimate_that_cannot_be_made_says_why(run):
    assert duration_of(run("quickstart", "hardware=cpu"), None).startswith("not estimated, because the model's size is")
    assert "set hardware.gpu_memory_gb" in duration_of(run("quickstart", "hardware=gpu"), SMALL)
    assert "engine=verl" in duration_of(run("quickstart", "hardware=cpu", "engine=verl"), SMALL)


def test_the_steps_of_an_earlier_start_replace_the_estimate(tmp_path):
    config = RunConfig.of(plain_project_experiment("quickstart", tmp_path, "hardware=cpu"))
    lines = [{"step": number, "timing_s/step": seconds} for number, seconds in enumerate((90, 30, 32), start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert str(duration_of(config, SMALL)) == "about 32 s per step, 13 min in all (measured in 3 steps of this run)"


@pytest.mark.parametrize(
    ("memories", "name", "expected"),
    [
        ([143.0], "NVIDIA H200", "H200"),
        ([85.0], "NVIDIA H100 80GB HBM3", "H100"),
        ([42.0], "NVIDIA A100-SXM4-40GB", "A100-40"),
        ([25.7], "NVIDIA GeForce RTX 4090", "4090"),
        ([48.0], "NVIDIA of the future", "A6000"),
        ([], None, "A100"),
    ],
)
def test_the_gpu_is_that_of_this_machine_or_of_the_configured_memory(run, monkeypatch, memories, name, expected):
    config = run("quickstart", "hardware=1x80gb")
    monkeypatch.setattr(duration, "usable_gpus", lambda: [Gpu("0", name, memory) for memory in memories])
    assert duration.gpu_kind(config) == expected
