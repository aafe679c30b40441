"""The kept groups show the extremes of a step, and a model's text is shown without control characters."""

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from rgtrain.checkpoints.rollout_files import (
    VALIDATION,
    KeptCompletion,
    KeptGroup,
    RolloutFiles,
    read_index,
    read_rollouts,
)
from rgtrain.config.run_config import RolloutsConfig
from rgtrain.training.rollout_keeper import RolloutKeeper, choose_groups, group_lines, log_table, scored_samples

MAX_TOKENS = 12
HOSTILE = "\x1b]0;title\x07\x1b[31m<answer>4\n\r</answer>\u202e" + "z" * 1000


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def samples(tokenizer, uid: str, texts: dict[str, float], *, training: bool = True) -> list:
    responses = [torch.tensor(tokenizer(text)["input_ids"][:MAX_TOKENS]) for text in texts]
    columns = {
        "uid": [uid] * len(texts),
        "data_source": ["gcd"] * len(texts),
        "extra_info": [{"digest": "0" * 16, "level": 1, "judged_whole": False}] * len(texts),
        "reward_model": [{"ground_truth": "4"}] * len(texts),
        "prompts": [torch.tensor(tokenizer(f"question {uid}")["input_ids"])] * len(texts),
        "responses": responses,
        "rm_scores": [torch.full((len(response),), 0.0) for response in responses],
        "extra_fields": [{"reward_extra_info": {"acc": reward, "label": "text"}} for reward in texts.values()],
        "rollout_log_probs": [torch.full((len(response),), -0.5) for response in responses],
    }
    for scores, reward in zip(columns["rm_scores"], texts.values(), strict=True):
        scores[-1] = reward
    if training:
        # Columns of the trainer may be padded.
        columns["advantages"] = [torch.cat([torch.ones(len(response)), torch.zeros(3)]) for response in responses]
        columns["old_log_probs"] = [torch.full((len(response),), -0.75) for response in responses]
    return scored_samples(columns)


class Tracker:
    """Collects logged tables, with the interfaces of Weights & Biases and of TensorBoard's adapter."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, str]] = []
        self.writer = SimpleNamespace(add_text=lambda name, text, step: self.logged.append((name, text)))
        self.Table = lambda columns, data: (columns, data)

    def log(self, data, step):
        self.logged += data.items()


def keeper(folder: Path, tokenizer, *, trackers=None, **settings) -> RolloutKeeper:
    files = RolloutFiles(folder, max_bytes=10**9, first_step=0)
    settings = {"per_step": 4, "print_every": 20, "max_gb": 2} | settings
    return RolloutKeeper(
        files,
        RolloutsConfig(**settings),
        tokenizer=tokenizer,
        max_response_length=MAX_TOKENS,
        seed=1,
        trackers=trackers or {},
    )


def keep(writer: RolloutKeeper, found: list, *, step: int) -> None:
    rewards: dict[str, list[float]] = {}
    for sample in found:
        rewards.setdefault(sample.uid, []).append(sample.reward)
    writer.keep_training(rewards, lambda uids: [sample for sample in found if sample.uid in uids], step=step)


def read(folder: Path) -> dict[tuple[int, str], list[KeptGroup]]:
    return {(block.step, block.split): groups for block, groups in read_rollouts(folder, read_index(folder))}


def test_a_kept_group_has_everything_about_its_completions(tmp_path, tokenizer):
    writer = keeper(tmp_path, tokenizer)
    keep(writer, samples(tokenizer, "a", {"<answer>4</answer><|im_end|>": 1.0, "no answer " * 20: 0.25}), step=2)
    writer.wait()
    [[group]] = read(tmp_path).values()
    assert (group.dataset, group.level, group.prompt, group.expected_answer) == ("gcd", 1, "question a", "4")
    right, cut = group.completions
    assert (right.text, right.answer, right.reward, right.finish_reason) == ("<answer>4</answer>", "4", 1.0, "stop")
    assert (right.advantage, right.mean_log_prob, right.rollout_gap) == (1.0, -0.5, 0.25)
    assert right.details == {"acc": 1.0}
    assert (cut.answer, cut.reward, cut.num_tokens, cut.finish_reason) == (None, 0.25, MAX_TOKENS, "length")


def test_all_of_a_validation_is_kept(tmp_path, tokenizer):
    writer = keeper(tmp_path, tokenizer, per_step=1)
    groups = [samples(tokenizer, uid, {"x": 0.0}, training=False) for uid in "abcde"]
    writer.keep_validation([sample for group in groups for sample in group], step=7)
    writer.wait()
    [found] = read(tmp_path).values()
    assert [group.prompt[-1] for group in found] == list("abcde")
    assert found[0].completions[0].advantage is None
    assert list(read(tmp_path)) == [(7, VALIDATION)]


def test_the_first_a_random_the_best_and_the_worst_group_are_chosen():
    rewards = [0.5, 0.2, 0.9, 0.0, *[0.5] * 60]
    chosen = choose_groups(rewards, num_groups=4, random=Random(1))
    assert chosen[0] == ["first"] and chosen[2] == ["best"] and chosen[3] == ["worst"]
    assert len(chosen) == 4 and ["random"] in chosen.values()


@pytest.mark.parametrize("num_groups", range(8))
@pytest.mark.parametrize("rewards", [[], [1.0], [0.0, 0.0], [0.0, 1.0, 0.5], [0.0] * 9], ids=str)
def test_as_many_groups_are_chosen_as_asked_for_or_exist(rewards, num_groups):
    chosen = choose_groups(rewards, num_groups=num_groups, random=Random(0))
    assert len(chosen) == min(num_groups, len(rewards))
    assert all(chosen.values())


def test_a_group_is_shown_every_few_steps_in_printable_lines(tmp_path, tokenizer, capsys):
    tracker = Tracker()
    writer = keeper(tmp_path, tokenizer, print_every=3, trackers={"wandb": tracker, "tensorboard": tracker})
    for step in range(1, 8):
        keep(writer, samples(tokenizer, "a", {HOSTILE: 1.0, "x": 0.0}), step=step)
    writer.wait()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "a group of" in line] == [
        f"[rgtrain] step {step}, a group of gcd level 1 with rewards from 0.00 to 1.00:" for step in (1, 3, 6)
    ]
    assert all(line.isprintable() and len(line) < 300 for line in lines)
    assert [name for name, _ in tracker.logged] == ["rollouts/training"] * 6


def test_a_long_hostile_text_is_shortened():
    completion = KeptCompletion(HOSTILE * 1000, None, 0.5, {}, 9, "length")
    lines = group_lines(KeptGroup("gcd", None, "", HOSTILE, HOSTILE, [], [completion] * 9), step=1)
    assert len(lines) == 8 and lines[-1] == "  and 5 more"
    assert all(line.isprintable() and len(line) < 300 for line in lines)


def test_a_full_disk_is_reported_once_and_the_run_goes_on(tmp_path, tokenizer, capsys, monkeypatch):
    writer = keeper(tmp_path, tokenizer)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RolloutFiles, "append", fail)
    for step in (1, 2, 3):
        keep(writer, samples(tokenizer, "a", {"x": 0.0}), step=step)
    writer.wait()
    assert capsys.readouterr().out.count("warning: cannot keep rollouts: [Errno 28] No space left on device") == 1


def kept_groups() -> list[KeptGroup]:
    """Return two groups whose levels, answers and advantages are partly unknown, with a hostile text."""
    right = KeptCompletion("<answer>4</answer>", "4", 1.0, {}, 5, "stop", advantage=0.5)
    hostile = KeptCompletion(f"# title\n<b>{HOSTILE}</b>", None, 0.0, {}, 12, "length")
    return [
        KeptGroup("gcd", 1, "0", "question a", "4", [], [right, hostile]),
        KeptGroup("chain_sum", None, "1", "question b", "7", [], [hostile]),
    ]


def test_the_table_lands_in_the_event_file_of_tensorboard(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = pytest.importorskip("verl.utils.tracking")
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    adapter = tracking._TensorboardAdapter("project", "run")
    log_table({"tensorboard": adapter}, kept_groups(), name="rollouts/training", step=3)
    adapter.finish()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    [event] = events.Tensors("rollouts/training/text_summary")
    [text] = event.tensor_proto.string_val
    assert event.step == 3
    assert text.decode().count("    dataset: ") == 3
    assert "    completion: <answer>4</answer>" in text.decode() and "\n# title" not in text.decode()


def test_the_table_lands_in_the_offline_run_of_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="project", dir=str(tmp_path), settings=wandb.Settings(console="off"))
    try:
        log_table({"wandb": wandb}, kept_groups(), name="rollouts/training", step=3)
        folder = Path(run.dir)
    finally:
        run.finish()
    [file] = folder.rglob("*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"][:4] == ["dataset", "level", "prompt", "completion"]
    assert [row[:2] for row in table["data"]] == [["gcd", 1], ["gcd", 1], ["chain_sum", None]]
    assert table["data"][0][3] == "<answer>4</answer>" and table["data"][1][3].endswith(f"{HOSTILE}</b>")
