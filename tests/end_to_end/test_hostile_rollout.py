"""Rollout, rewards, sample store and metrics of a training batch finish even if the model generates hostile text."""

import faulthandler
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.experiments import small_with_model
from support.scripted_rollout import NUM_PROMPTS, Workers, started, statuses
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer

from rgtrain.training.metrics import by_dataset
from rgtrain.training.rollout.sample_store import STORE
from rgtrain.training.trainer import _rollouts

MIXTURE = ["~data.mixture.chain_sum", "~data.mixture.spell_backward"]
MIXTURE += ["+data.mixture.polynomial_multiplication.weight=1", "+data.mixture.countdown.weight=1"]
MIXTURE += ["data.held_out_files=[]", "data.prompt.num_examples=0"]
LENGTHS = ["data.max_prompt_length=1024", "data.max_response_length=700"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def config(tiny_model):
    return OmegaConf.create(small_with_model(tiny_model, Path("unused"), *MIXTURE, *LENGTHS))


@pytest.mark.parametrize("answer", ["7" * 300 + " is the answer", "1.5" * 100 + "!", "1e5" * 100 + ", I think"])
def test_a_batch_of_hostile_answers_is_trained_on(config, tokenizer, answer):
    response = tokenizer.encode(f"<answer>{answer}</answer>", add_special_tokens=False)
    # A backtracking pattern holds the interpreter's lock, so only a C thread can end it.
    faulthandler.dump_traceback_later(120, exit=True)
    try:
        rollout = started(config, tokenizer, Workers(response))
        assert statuses() == ["finished"] * NUM_PROMPTS
    finally:
        faulthandler.cancel_dump_traceback_later()
    rollout.raise_failures()
    num_samples = config.actor_rollout_ref.rollout.n
    keys = [f"u{prompt}_{sample}_0" for prompt in range(NUM_PROMPTS) for sample in range(num_samples)]
    tags = STORE.kv_list("train")["train"]
    batch = KVBatchMeta(keys=keys, tags=[tags[key] for key in keys], partition_id="train")
    metrics = by_dataset(_rollouts(batch))
    datasets = {name.split("/")[1] for name in metrics if name.startswith("train/")}
    assert datasets <= {"polynomial_multiplication", "countdown"}
    assert {metrics[f"train/{dataset}/answered"] for dataset in datasets} == {1.0}
    assert sum(metrics[f"train/{dataset}/num_scored"] for dataset in datasets) == len(keys)
