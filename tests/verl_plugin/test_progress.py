import json

import numpy as np

from rgtrain.verl_plugin.progress import PLAIN_MARK, MetricsFile, Progress, step_line

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


def test_a_step_line_says_what_a_person_wants_to_know():
    assert step_line(STEP, step=3, num_steps=40, seconds_left=444) == (
        "step  3/40 | reward 0.500 | chain_sum 0.25 | length 9 | 12.0 s (generate 4.0, update 6.0) | 8 min left"
    )


def test_a_step_line_says_where_a_curriculum_stands():
    curriculum = {"level": 2, "success_at_level_1": 0.875, "success_at_level_2": 0.5}
    step = STEP | {f"curriculum/chain_sum/{name}": value for name, value in curriculum.items()}
    line = step_line(step | {"train/chain_sum/zero_signal": 0.25}, step=3, num_steps=40, seconds_left=444)
    assert "| chain_sum 0.25 (level 2; 1: 0.88, 2: 0.50; no signal 0.25) |" in line


def test_time_left_follows_the_recent_steps(tmp_path, capsys):
    progress = Progress(MetricsFile(tmp_path / "metrics.jsonl", first_step=0), num_steps=12)
    progress.log(STEP, step=2)
    assert capsys.readouterr().out.startswith(PLAIN_MARK) and progress._seconds_left(2) == 12.04 * 10


def test_the_validation_before_training_is_shown(tmp_path, capsys):
    progress = Progress(MetricsFile(tmp_path / "metrics.jsonl", first_step=0), num_steps=2)
    progress.log({"val-core/chain_sum/acc/mean@1": 0.125}, step=0)
    assert capsys.readouterr().out == f"{PLAIN_MARK}before training: validation chain_sum 0.125\n"


def test_metrics_are_json_even_where_a_value_is_not_a_number(tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl", first_step=0)
    file.write({"loss": float("nan"), "lr": np.float64(0.1), "name": "x"}, step=1)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (record["loss"], record["lr"], record["name"], record["step"]) == (None, 0.1, None, 1)


def test_a_resumed_run_forgets_the_steps_it_will_do_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, first_step=1)
    for step in (1, 2, 3, 4):
        first.write({}, step=step)
    with path.open("a") as file:
        file.write('{"step": 5, "unfinis')
    MetricsFile(path, first_step=3).write({}, step=3)
    assert steps(path) == [1, 2, 3]
