"""TRL trains on an environment's problems with its reward, which is training's own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.train_with_trl import SETTINGS

from rgtrain.environments import open_environment
from rgtrain.environments.message_text import message_text
from rgtrain.environments.trl_adapter import trl_dataset, trl_reward, trl_row
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import load_entry

# verl cannot build a model beside TRL, so it has a folder apart.
TRL = Path(sys.prefix) / "trl"


@pytest.fixture(scope="module")
def environment():
    with open_environment(**SETTINGS) as environment:
        yield environment


def right_answer(row: dict) -> str:
    return f"<answer>{load_entry(json.loads(row['problem'])['entry'])['answer']}</answer>"


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> dict[str, Any]:
    if not TRL.is_dir():
        pytest.skip("TRL is not installed; see requirements-trl.txt")
    folder = tmp_path_factory.mktemp("trl")
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support/train_with_trl.py"),
        str(tiny_model),
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TRL), str(PROJECT_ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(("form", "num_steps"), [("conversational", 5), ("standard", 2)])
def test_the_grpo_trainer_trains_on_an_environment(trained, form, num_steps):
    history = trained[form]["log_history"]
    steps = [entry for entry in history if "rgtrain/accuracy" in entry]
    assert len(steps) == num_steps
    assert all(entry["reward"] == pytest.approx(0.5 * entry["rgtrain/reward_published_length"]) for entry in steps)
    assert all(entry["rgtrain/curriculum/spell_backward/level"] == 0 for entry in steps)
    assert any("eval_rgtrain/accuracy" in entry for entry in history)
    assert trained[form]["num_extra_answers"] == 2
    assert trained[form]["has_learned"]


def test_trl_scores_as_training_does(answered_environment, many_answers):
    # The rows of a dataset, for the problems of the answers.
    rows = {answer.problem.id: trl_row(answer.problem, "train") for answer in many_answers}
    reported = answered_environment.state_dict()
    rewards = trl_reward(answered_environment)(
        completions=[[{"role": "assistant", "content": answer.text}] for answer in many_answers],
        completion_ids=[[0] * answer.num_tokens for answer in many_answers],
        problem=[rows[answer.problem.id]["problem"] for answer in many_answers],
        split=["train"] * len(many_answers),
    )
    assert rewards == [answer.reward for answer in many_answers]
    assert answered_environment.state_dict() != reported
    # Other tests use this environment, too.
    answered_environment.load_state_dict(reported)


def test_validation_problems_are_not_training_problems_and_are_not_reported(environment):
    validation = trl_dataset(environment, split="validation")
    training = trl_dataset(environment, size=50)
    assert len(validation) == 4
    assert not {row["prompt"][-1]["content"] for row in validation} & {row["prompt"][-1]["content"] for row in training}
    metrics: dict[str, float] = {}
    rewards = trl_reward(environment)(
        completions=[right_answer(row) for row in validation],
        problem=validation["problem"],
        split=validation["split"],
        log_metric=metrics.__setitem__,
    )
    assert rewards == [1.0] * 4
    assert metrics["rgtrain/accuracy"] == 1
    assert not [name for name in metrics if "curriculum" in name]


def test_a_stream_follows_the_curriculum(environment):
    stream = iter(trl_dataset(environment))
    assert {next(stream)["level"] for _ in range(10)} == {0}
    reward = trl_reward(environment)
    for _ in range(100):
        row = next(stream)
        if row["level"] == 1:
            break
        reward(completions=[right_answer(row)] * 4, problem=[row["problem"]] * 4, split=["train"] * 4)
    else:
        pytest.fail("the curriculum stayed at its first level")


def test_a_stream_is_not_read_by_workers_of_a_data_loader(environment, monkeypatch):
    stream = trl_dataset(environment)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ConfigError, match="dataloader_num_workers=0"):
        next(iter(stream))


def test_processes_of_a_trainer_report_the_results_of_all(environment):
    import torch.distributed

    [row] = trl_dataset(environment, size=1)
    arguments = {"completions": ["<answer></answer>"] * 2, "problem": [row["problem"]] * 2, "split": ["train"] * 2}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        metrics: dict[str, float] = {}
        trl_reward(environment)(**arguments, log_metric=metrics.__setitem__)
    finally:
        torch.distributed.destroy_process_group()
    assert [name for name in metrics if name.startswith("rgtrain/curriculum/spell_backward/success_at_level")]


def test_reasoning_that_was_taken_apart_is_put_back():
    assert message_text("4", "2 + 2") == "<think>\n2 + 2\n</think>\n4"
    assert message_text("4", "2 + 2", thinking_begun=True) == "2 + 2\n</think>\n4"
    assert message_text([{"type": "text", "text": "4"}, {"type": "image"}], None) == "4"
    assert message_text(None) == ""


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"split": "test"}, "unknown split 'test'"), ({"size": 0}, "has size 0"), ({"size": 101}, "has size 101")],
)
def test_an_impossible_dataset_is_refused(environment, choice, message):
    with pytest.raises(ConfigError, match=message):
        trl_dataset(environment, **choice)
