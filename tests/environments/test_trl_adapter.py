"""TRL trains on an environment's problems with its reward, which is training's own."""

import json

import pytest

from rgtrain.environments import open_environment
from rgtrain.environments.message_text import message_text
from rgtrain.environments.trl_adapter import trl_dataset, trl_reward, trl_row
from rgtrain.errors import ConfigError
from rgtrain.problems import load_entry

trl = pytest.importorskip("trl", reason="trl is not installed; see requirements-test.txt")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def environment():
    with open_environment(
        mixture={"spell_backward": {}},
        curriculum={"datasets": {"spell_backward": {"num_levels": 2}}},
        # The random model never answers, so this part makes the difference.
        reward={"accuracy": {}, "published_length": {"weight": 0.5, "max_chars": 100}},
        prompt={"system_prompt": None},
        scorer={"num_workers": 1},
        size=100,
        validation_size=4,
        hold_out_shipped=False,
    ) as environment:
        yield environment


def right_answer(row: dict) -> str:
    return f"<answer>{load_entry(json.loads(row['problem'])['entry'])['answer']}</answer>"


@pytest.mark.parametrize(("form", "num_steps"), [("conversational", 5), ("standard", 2)])
def test_the_grpo_trainer_trains_on_an_environment(environment, tiny_model, tokenizer, tmp_path, form, num_steps):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    prompts = {"tokenizer": tokenizer if form == "standard" else None}
    trainer = trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=trl_reward(environment),
        train_dataset=trl_dataset(environment, **prompts),
        eval_dataset=trl_dataset(environment, split="validation", size=2, **prompts),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=num_steps,
            per_device_train_batch_size=2,
            num_generations=2,
            num_generations_eval=1,
            max_completion_length=4,
            eval_strategy="steps",
            eval_steps=num_steps,
            logging_steps=1,
            save_strategy="no",
            learning_rate=1e-3,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "rgtrain/accuracy" in entry]
    assert len(steps) == num_steps
    assert all(entry["reward"] == pytest.approx(0.5 * entry["rgtrain/reward_published_length"]) for entry in steps)
    assert all(entry["rgtrain/curriculum/spell_backward/level"] == 0 for entry in steps)
    assert any("eval_rgtrain/accuracy" in entry for entry in trainer.state.log_history)
    assert len(trainer._logs["extra"]["answer"]) == 2
    assert any(not value.equal(before[name]) for name, value in model.named_parameters())


def test_trl_scores_as_training_does(answered_environment, many_answers):
    # The rows of a dataset, for the problems of the answers.
    rows = {answer.problem.id: trl_row(answer.problem, "train") for answer in many_answers}
    reported = answered_environment.curriculum.state_dict()
    rewards = trl_reward(answered_environment)(
        completions=[[{"role": "assistant", "content": answer.text}] for answer in many_answers],
        completion_ids=[[0] * answer.num_tokens for answer in many_answers],
        problem=[rows[answer.problem.id]["problem"] for answer in many_answers],
        split=["train"] * len(many_answers),
    )
    assert rewards == [answer.reward for answer in many_answers]
    assert answered_environment.curriculum.state_dict() != reported


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
