"""A checkpoint is found by a run folder, a step folder or a step's name."""

import json

import pytest
from support.checkpoint_files import (
    tiny_model,
    write_checkpoint,
)

from rgtrain.checkpoints.checkpoint_lookup import find_checkpoint
from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.random_checkpoints import rank_file
from rgtrain.errors import ConfigError


def test_a_run_folder_gives_the_step_that_the_tracker_names(tmp_path):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path / "checkpoints" / f"global_step_{step}", tiny_model(), world_size=1)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    assert find_checkpoint(tmp_path / "checkpoints").folder.parent.name == "global_step_10"
    assert find_checkpoint(tmp_path).folder.parent.name == "global_step_10"


def test_without_a_tracker_the_highest_complete_step_is_used_and_the_skipped_one_reported(tmp_path, caplog):
    for step in (9, 10, 11):
        write_checkpoint(tmp_path / f"global_step_{step}", tiny_model(), world_size=2)
    rank_file(tmp_path / "global_step_11" / "actor", 2, 1).unlink()
    assert find_checkpoint(tmp_path).folder.parent.name == "global_step_10"
    assert "global_step_11" in caplog.text


@pytest.mark.parametrize(("step", "found"), [(None, 10), ("last", 10), ("best", 5), (15, 15), ("15", 15)])
def test_a_step_of_a_run_is_chosen_by_name_or_number(tmp_path, step, found):
    for number in (5, 10, 15):
        write_checkpoint(tmp_path / "checkpoints" / f"global_step_{number}", tiny_model(), world_size=1)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    (tmp_path / "checkpoints" / "best_score.json").write_text('{"step": 5, "score": 0.5}')
    assert find_checkpoint(tmp_path, step=step).step == found


def test_a_run_without_a_complete_step_is_refused_with_the_missing_files(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    rank_file(actor, 2, 0).unlink()
    (tmp_path / "global_step_2").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    with pytest.raises(ConfigError, match=r"names step 3.*global_step_2.*lacks 1 of 2 rank files"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_checkpoints_is_refused_with_the_accepted_folders(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{folder}.*global_step_N"):
        export(tmp_path / folder, tmp_path / "exported")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            "best",
            r"the best step of this run is not recorded \(there is no best_score.json\): "
            r"give a step by number \(.*1, 2\)",
        ),
        ("newest", r"unknown step 'newest'; give best, last or a number \(.* has steps 1, 2\)"),
        (3, r"there is no step 3: .* has steps 1, 2"),
        (2, r"lacks 1 of 2 rank files"),
    ],
)
def test_an_unusable_step_is_refused_with_the_available_ones(tmp_path, step, message):
    for number in (1, 2):
        write_checkpoint(tmp_path / f"global_step_{number}", tiny_model(), world_size=2)
    rank_file(tmp_path / "global_step_2" / "actor", 2, 1).unlink()
    with pytest.raises(ConfigError, match=message):
        find_checkpoint(tmp_path, step=step)


def test_best_is_refused_if_no_step_beats_the_initial_model(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for number in (20, 40):
        write_checkpoint(checkpoints / f"global_step_{number}", tiny_model(), world_size=1)
    (checkpoints / "best_score.json").write_text('{"step": 0, "score": 0.41, "metric": "val-core/*/acc/mean@1"}')
    lines = [{"step": step, "val-core/gcd/acc/mean@1": score} for step, score in ((0, 0.41), (20, 0.39), (40, 0.25))]
    (tmp_path / "metrics.jsonl").write_text("null\n" + "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=r"0.410 at step 0, the best saved step is 20 with 0.390.*--step last"):
        find_checkpoint(tmp_path, step="best")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}'])
def test_a_damaged_record_of_the_best_step_is_refused_by_name(tmp_path, content):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    (tmp_path / "best_score.json").write_text(content)
    with pytest.raises(ConfigError, match=r"best_score.json' is damaged.*Give a step by number"):
        find_checkpoint(tmp_path, step="best")


def test_a_step_other_than_that_of_the_given_folder_is_refused(tmp_path):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    assert find_checkpoint(tmp_path / "global_step_1", step=1).step == 1
    with pytest.raises(ConfigError, match="is the folder of one step: to choose step best, give the run folder"):
        find_checkpoint(tmp_path / "global_step_1", step="best")
