import json

import numpy as np
import pytest

from rgtrain.checkpoints.metrics_file import STEP_METRICS, read_metrics, unlogged_record, validation_score
from rgtrain.training.lifecycle.console import PLAIN_MARK
from rgtrain.training.progress import MetricsFile, TrainingProgress, metrics_line, step_line, validation_line

STEP = {
    "critic/rewards/mean": np.float32(0.5),
    "train/chain_sum/acc": 0.25,
    "train/chain_sum/reward_format": 1.0,
    "response_length/mean": 9.4,
    "timing_s/step": 12.04,
    "timing_s/gen": 4.0,
    "timing_s/update_actor": 6.0,
    "timing_s/adv": 0.01,
}


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_step_line_shows_reward_accuracy_length_and_times():
    assert step_line(STEP, step=3, num_steps=40, seconds_left=444) == (
        "step  3/40 | reward 0.500 | accuracy: chain_sum 0.25 | 9 tokens/response | 12.0 s (generate 4.0, update 6.0)"
        " | 8 min left"
    )


def test_a_dataset_may_have_a_slash_in_its_name():
    metrics = {"train/sound/coin_flip/acc": 0.25, "train/sound/coin_flip/accuracy": 1.0, "critic/rewards/mean": 0.5}
    line = step_line(STEP | metrics, step=3, num_steps=40, seconds_left=444)
    assert "| accuracy: chain_sum 0.25, sound/coin_flip 0.25 |" in line
    validation = {"val-core/sound/coin_flip/acc/mean@1": 0.5, "val-core/chain_sum/acc/mean@1": 1.0}
    assert validation_line(validation) == "chain_sum 1.000, sound/coin_flip 0.500"
    assert validation_score(validation) == (0.75, "val-core/*/acc/mean@1")


def test_a_step_line_shows_the_state_of_a_curriculum():
    curriculum = {"level": 2, "success_at_level_1": 0.875, "success_at_level_2": 0.5}
    step = STEP | {f"curriculum/chain_sum/{name}": value for name, value in curriculum.items()}
    line = step_line(step | {"train/chain_sum/zero_signal": 0.25}, step=3, num_steps=40, seconds_left=444)
    assert "| accuracy: chain_sum 0.25 (level 2; 1: 0.88, 2: 0.50; no signal 0.25) |" in line


def test_a_step_line_of_many_datasets_shows_the_first_and_the_mean():
    step = {name: value for name, value in STEP.items() if name != "train/chain_sum/acc"}
    step |= {f"train/dataset_{number:02}/acc": number / 100 for number in range(1, 71)}
    line = step_line(step, step=3, num_steps=40, seconds_left=444)
    assert "| accuracy: dataset_01 0.01, " in line and "dataset_08 0.08 and 62 more, mean 0.36 |" in line


def test_the_time_left_is_estimated_from_recent_steps(tmp_path, capsys):
    progress = TrainingProgress(MetricsFile(tmp_path / "metrics.jsonl", first_step=0), num_steps=12)
    progress.log(STEP, step=2)
    assert capsys.readouterr().out.startswith(PLAIN_MARK) and progress._seconds_left(2) == 12.04 * 10


def test_a_run_with_more_than_a_day_left_is_warned_of_once(tmp_path, capsys):
    progress = TrainingProgress(MetricsFile(tmp_path / "metrics.jsonl", first_step=0), num_steps=1000)
    for step in range(1, 7):
        progress.log(STEP | {"timing_s/step": 864.0}, step=step)
    [warning] = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "more than a day is left at 14 min per step" in warning
    assert warning.endswith("trainer.total_training_steps=104")


def test_the_validation_before_training_is_shown(tmp_path, capsys):
    progress = TrainingProgress(MetricsFile(tmp_path / "metrics.jsonl", first_step=0), num_steps=2)
    progress.log({"val-core/chain_sum/acc/mean@1": 0.125}, step=0)
    assert capsys.readouterr().out == f"{PLAIN_MARK}before training: validation accuracy: chain_sum 0.125\n"


def test_values_that_are_not_numbers_become_null(tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl", first_step=0)
    file.write({"loss": float("nan"), "lr": np.float64(0.1), "name": "x"}, step=1)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (record["loss"], record["lr"], record["name"], record["step"]) == (None, 0.1, None, 1)


def test_a_resumed_run_drops_the_metrics_of_steps_that_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, first_step=1)
    for step in (1, 2, 3, 4):
        first.write({}, step=step)
    with path.open("a") as file:
        file.write('{"step": 5, "unfinis')
    MetricsFile(path, first_step=3).write({}, step=3)
    assert steps(path) == [1, 2, 3]


def test_a_file_for_one_step_keeps_the_lines_of_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, first_step=1)
    for step in (1, 2, 3):
        first.write({}, step=step)
    MetricsFile(path, first_step=2, last_step=2).write({"val-core/gcd/acc/mean@1": 0.5}, step=2)
    assert steps(path) == [1, 3, 2]


DAMAGE = {
    "a power loss": b"\0" * 100,
    "an empty line": b"",
    "null": b"null",
    "no step": b"{}",
    "a list": b'[{"step": 1}]',
    "bytes that are not UTF-8": b'{"step": 1, "name": "\xff"}',
    "a step in words": b'{"step": "1"}',
    "a step that is no whole number": b'{"step": 1.0}',
    "a step before the first": b'{"step": -1}',
    "a step that is a truth value": b'{"step": true}',
    "deep brackets": b"[" * 100_000,
    "a long line": b"x" * (40 << 20),
    "half a line": b'{"step": 1, "loss": 0.',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_skipped_counted_and_moved_away_on_resume(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + DAMAGE[damage] + b'\n{"step": 2}\n{"step": 3}\n{"step": 4, "cut')
    assert read_metrics(path) == ([{"step": 1}, {"step": 2}, {"step": 3}], 1)
    MetricsFile(path, first_step=3).write({}, step=3)
    assert read_metrics(path)[1] == 0
    assert steps(path) == [1, 2, 3]
    assert "moved 1 damaged line of metrics.jsonl (first: line 2) to metrics.jsonl.damaged" in capsys.readouterr().out
    assert DAMAGE[damage].startswith((tmp_path / "metrics.jsonl.damaged").read_bytes()[:1000].rstrip(b"\n"))


def test_the_metrics_of_a_checkpoint_are_logged_once_with_their_validation(tmp_path, capsys):
    path, checkpoint = tmp_path / "metrics.jsonl", tmp_path / "global_step_3"
    checkpoint.mkdir()
    (checkpoint / STEP_METRICS).write_text(metrics_line(STEP | {"loss": float("nan")}, step=3))
    path.write_text('{"step": 2}\n')
    unlogged = unlogged_record(path, checkpoint)
    progress = TrainingProgress(MetricsFile(path, first_step=4), num_steps=40, unlogged=unlogged)
    progress.log({"val-core/chain_sum/acc/mean@1": 0.125}, step=3)
    progress.log({}, step=4)
    records, _ = read_metrics(path)
    assert [record["step"] for record in records] == [2, 3, 4]
    assert records[1] == unlogged | {"val-core/chain_sum/acc/mean@1": 0.125}
    assert "step  3/40 | reward 0.500" in capsys.readouterr().out
    assert unlogged_record(path, checkpoint) is None


@pytest.mark.parametrize("content", [b"", b"null", b"\0\0", b"{}"])
def test_damaged_metrics_of_a_checkpoint_are_ignored(tmp_path, content):
    (tmp_path / STEP_METRICS).write_bytes(content)
    assert unlogged_record(tmp_path / "metrics.jsonl", tmp_path) is None


def test_the_best_is_chosen_by_mean_accuracy_only():
    metrics = {
        "val-core/gcd/acc/mean@4": 0.25,
        "val-core/gcd/acc/best@4/mean": 0.9,
        "val-core/gcd/acc/best@4/std": 0.9,
        "val-core/gcd/acc/maj@4/mean": 0.9,
        "val-core/gcd/reward/mean@4": 0.9,
        "val-aux/gcd/acc/mean@4": 0.9,
        "val-core/chain_sum/acc/mean@4": np.float64(0.75),
    }
    assert validation_score(metrics) == (0.5, "val-core/*/acc/mean@4")
    assert validation_score({"val-core/gcd/reward/mean@1": 1.0}) is None
    assert validation_score({"val-core/gcd/acc/mean@1": float("nan")}) is None
    assert validation_score({"val-core/gcd/acc/mean@1": None}) is None
    assert validation_score({"val-core/gcd/acc/mean@1": 10**400}) is None
