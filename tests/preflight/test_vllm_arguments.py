"""An argument of vLLM that another key or the trainer sets is refused in engine_kwargs.vllm, with the right key."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from support.experiments import small_with_model
from verl.workers.config import RolloutConfig

from rgtrain.config.run_config import RunConfig
from rgtrain.config.verl_keys import _vllm_arguments, classified_keys
from rgtrain.errors import ConfigError
from rgtrain.preflight.checks import collect_errors
from rgtrain.preflight.vllm_arguments import KEY_OF_ARGUMENT, SET_BY_ENGINE, check_vllm_arguments
from rgtrain.training.rollout.vllm_rollout import engine_arguments

ROLLOUT = "actor_rollout_ref.rollout"


@cache
def plain(engine):
    return small_with_model(Path("model"), Path("run"), f"engine={engine}")


def config(engine="fast", **arguments):
    changed = deepcopy(plain(engine))
    changed["actor_rollout_ref"]["rollout"]["engine_kwargs"]["vllm"] |= arguments
    return RunConfig.of(changed)


@pytest.mark.parametrize("engine", ["fast", "verl"])
def test_each_argument_that_something_else_sets_is_refused_in_either_spelling(engine):
    for name in KEY_OF_ARGUMENT.keys() | SET_BY_ENGINE[engine]:
        for spelling in {name, name.replace("_", "-")}:
            with pytest.raises(ConfigError, match=rf"engine_kwargs\.vllm\.{spelling} is 2, but .*; (remove|set)"):
                check_vllm_arguments(config(engine, **{spelling: 2}))
        check_vllm_arguments(config(engine, **{name: None}))


@pytest.mark.parametrize(
    ("engine", "arguments", "message"),
    [
        ("fast", {"tensor_parallel_size": 2}, rf"{ROLLOUT}.tensor_model_parallel_size sets .*; set that key instead"),
        ("fast", {"pipeline_parallel_size": 2}, r"engine=fast splits an engine by tensor parallelism only; remove it"),
        ("fast", {"data_parallel_size": 2}, r"engine=fast splits an engine by tensor parallelism only; remove it"),
        ("fast", {"quantization": "fp8"}, r"engine=fast gives vLLM the trained weights unquantized; .*engine=verl"),
        ("fast", {"enable_sleep_mode": False}, rf"is False, but {ROLLOUT}.enable_sleep_mode sets this argument"),
        ("fast", {"tokenizer": "other"}, "put the tokenizer into the model's folder"),
        ("fast", {"distributed_executor_backend": "mp"}, "engine=fast sets this argument itself; remove it"),
        ("verl", {"quantization": "fp8"}, rf"{ROLLOUT}.quantization sets this argument; set that key instead"),
        ("verl", {"enable_expert_parallel": True}, f"verl replaces it; set {ROLLOUT}.expert_parallel_size instead"),
    ],
)
def test_a_refusal_names_the_fix(engine, arguments, message):
    with pytest.raises(ConfigError, match=message):
        check_vllm_arguments(config(engine, **arguments))


def test_all_refused_arguments_are_reported_by_preflight():
    errors, _ = collect_errors(config(tensor_parallel_size=2, seed=3))
    [error] = [error for error in errors if "engine_kwargs" in error]
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("engine", ["fast", "verl"])
def test_other_arguments_are_accepted(engine):
    free = {"compilation_config": {"mode": 3}, "attention_backend": "FLASHINFER", "kv_cache_dtype": "fp8"}
    free |= {"kv_cache_memory_bytes": 2 * 10**9, "block_size": 64, "async_scheduling": False}
    check_vllm_arguments(config(engine, **free))
    check_vllm_arguments(config("fast", enable_expert_parallel=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA stack has another version of vLLM")
def test_the_names_are_those_of_vllms_arguments():
    assert KEY_OF_ARGUMENT.keys() | SET_BY_ENGINE["fast"] | SET_BY_ENGINE["verl"] <= _vllm_arguments()


def test_every_argument_that_the_rollout_sets_is_refused():
    assert set(KEY_OF_ARGUMENT.values()) <= classified_keys().keys()
    given = engine_arguments(RolloutConfig(name="vllm"), "model", replica=0).keys()
    # A run may choose another scheduler, which turns the fast path off.
    assert given - KEY_OF_ARGUMENT.keys() - SET_BY_ENGINE["fast"] == {"scheduler_cls"}
