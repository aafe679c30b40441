"""verl's reward managers give the rewards of the fast engine, from the confined scorer."""

import asyncio
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from support.experiments import small_with_model
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from rgtrain.config.run_config import RunConfig
from rgtrain.problems import Scorer, build_mixture, dump_entry, parse_mixture
from rgtrain.problems.group_rewards import CompletionReward, FinishedCompletion, GroupRewards
from rgtrain.training.stock_verl import reward_managers

WORDS = ["engine=verl", "+reward.parts.length={weight: 0.5, max_len: 16, buffer: 15}", "reward.scorer.timeout_s=60"]
PADDING = 3


@pytest.fixture(scope="module")
def config(tiny_model) -> DictConfig:
    config = OmegaConf.create(small_with_model(tiny_model, Path("unused"), *WORDS))
    config.reward.parts.format = {"weight": 0.25, "thinking": False}
    return config


@pytest.fixture(scope="module")
def tokenizer(tiny_model) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    return dict(build_mixture(parse_mixture({"chain_sum": {"weight": 1, "config": None}}), seed=1, size=1)[0].entry)


def sample_of(entry: dict[str, Any], response: list[int], prompt_ids: list[int] | None = None) -> DataProto:
    """Return a completion as verl's agent loop sends it to a reward process."""
    prompt, padded = torch.tensor(prompt_ids or [1, 2, 3, 4, 5]), torch.tensor([*response, *[0] * PADDING])
    mask = torch.ones(len(prompt) + len(padded), dtype=torch.int64)
    mask[-PADDING:] = 0
    tensors = {"prompts": prompt, "responses": padded, "attention_mask": mask, "input_ids": torch.cat([prompt, padded])}
    others = {"data_source": "chain_sum", "reward_model": {"ground_truth": ""}, "__num_turns__": 2}
    others["extra_info"] = {"entry": dump_entry(entry), "dataset": "chain_sum", "level": None}
    return DataProto(
        batch=TensorDict({name: value[None] for name, value in tensors.items()}, batch_size=1),
        non_tensor_batch={name: np.array([value], dtype=object) for name, value in others.items()},
    )


def scored(
    config: DictConfig,
    tokenizer: Any,
    entry: dict[str, Any],
    *responses: list[int],
    prompt_ids: list[int] | None = None,
) -> list[tuple[float, dict[str, Any]]]:
    """Return the reward and the details of each response from one manager, whose start takes time."""

    async def score() -> list[dict[str, Any]]:
        # verl's managers take the running event loop.
        manager = load_reward_manager(config, tokenizer)
        return [await manager.run_single(sample_of(entry, response, prompt_ids)) for response in responses]

    return [(result["reward_score"], result["reward_extra_info"]) for result in asyncio.run(score())]


def test_completions_have_the_reward_and_the_details_of_the_fast_engine(config, tokenizer, entry):
    texts = [
        f"<answer>{entry['answer']}</answer>",
        "<answer>no</answer>",
        "It is 4.",
        "<answer>__import__('os')</answer>",
    ]
    responses = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    run = RunConfig.of(OmegaConf.to_container(config))
    decoded = tokenizer.batch_decode(responses, skip_special_tokens=True)
    with Scorer(**run.reward.scorer) as scorer:
        fast = GroupRewards(run.reward.parts, scorer=scorer, max_tokens=run.data.max_response_length)
        group = [FinishedCompletion(text, len(response)) for text, response in zip(decoded, responses, strict=True)]
        expected = asyncio.run(fast.compute(group, entry))
    for (reward, details), one in zip(scored(config, tokenizer, entry, *responses), expected, strict=True):
        assert reward == one.reward
        assert details | {"score_seconds": 0} == one.details | {"score_seconds": 0}


def test_a_draft_earns_nothing_if_the_prompt_opens_thinking(config, tokenizer, entry):
    response = tokenizer.encode(f"<answer>{entry['answer']}</answer>", add_special_tokens=False)
    for prompt, accuracy in (("2 + 2? <think>\n", 0.0), ("2 + 2? <think>\n</think>", 1.0)):
        [(_, details)] = scored(config, tokenizer, entry, response, prompt_ids=tokenizer.encode(prompt))
        assert details["acc"] == accuracy


def test_a_group_that_arrives_in_parts_has_the_rewards_of_the_fast_engine(config, entry, monkeypatch):
    parts = {"accuracy": {}, "pkg://support.recorded_rewards.record": {"scale": 2}}
    run = RunConfig.of(OmegaConf.to_container(OmegaConf.merge(config, {"reward": {"scorer": {"num_workers": 1}}})))
    run = dataclasses.replace(run, reward=dataclasses.replace(run.reward, parts=parts))
    group = [FinishedCompletion(f"<answer>{entry['answer']}</answer>", 9), FinishedCompletion("No.", 5)]
    info = {"entry": dump_entry(entry), "dataset": "chain_sum", "level": None, "messages": [], "step": 1}
    info |= {"thinking_begun": False, "uid": "u"}
    gatherer = reward_managers.GroupGatherer(run)

    async def gathered() -> list[CompletionReward]:
        calls = [
            gatherer.reward(completion, info | {"number": number}, group_size=2)
            for number, completion in reversed(list(enumerate(group)))
        ]
        return (await asyncio.gather(*calls))[::-1]

    results = asyncio.run(gathered())
    assert [result.reward for result in results] == [1.0, 2.0]
    monkeypatch.setattr(reward_managers, "_SIBLING_SECONDS", 0.01)
    with pytest.raises(TimeoutError, match="1 of 2 completions of a prompt arrived within 0.01 s"):
        asyncio.run(gatherer.reward(group[0], info | {"number": 0}, group_size=2))


def test_a_function_of_the_user_replaces_the_parts(config, tokenizer, entry, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info, **_):\n"
        "    return {'score': 0.5, 'acc': 1.0, 'tokens': extra_info['num_response_tokens']}\n"
    )
    changed = OmegaConf.merge(config, {"reward": {"custom_reward_function": {"path": str(file)}}})
    assert scored(changed, tokenizer, entry, [5, 6, 7]) == [(0.5, {"acc": 1.0, "tokens": 3})]


def test_other_managers_of_verl_score_with_the_parts_too(config, tokenizer, entry):
    changed = OmegaConf.merge(config, {"reward": {"reward_manager": {"name": "dapo"}}})
    response = tokenizer.encode(f"<answer>{entry['answer']}</answer>", add_special_tokens=False)
    [(reward, details)] = scored(changed, tokenizer, entry, response)
    assert reward == pytest.approx(1.25 - 0.5 * (len(response) - 1) / 15)
    assert details["acc"] == 1.0


def test_the_name_of_an_unknown_manager_is_reported(config, tokenizer):
    changed = OmegaConf.merge(config, {"reward": {"reward_manager": {"name": "niave"}}})
    with pytest.raises(AttributeError, match="niave"):
        load_reward_manager(changed, tokenizer)


@pytest.mark.parametrize(("num_processes", "expected"), [(1, 8), (3, 3), (8, 1), (16, 1)])
def test_the_scoring_processes_are_divided_among_reward_processes(config, monkeypatch, num_processes, expected):
    started = []
    monkeypatch.setattr(reward_managers, "Scorer", lambda **settings: nullcontext(started.append(settings)))
    changed = {"reward": {"num_workers": num_processes, "scorer": {"num_workers": 8}}}
    reward_managers.RunReward(RunConfig.of(OmegaConf.to_container(OmegaConf.merge(config, changed))))
    assert started[0]["num_workers"] == expected
