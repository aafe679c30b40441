"""A finished run prints held-out accuracy before and after, and commands with real paths."""

import shlex

import pytest
from support.run_folders import write_run

from rgtrain.checkpoints.checkpoint_store import LAST
from rgtrain.checkpoints.validation_accuracy import held_out_accuracies
from rgtrain.reporting.run_ending import ending_lines, follow_up_commands, held_out_table
from rgtrain.reporting.run_reader import read_run
from rgtrain.stats import share_interval
from rgtrain.tables import percent


@pytest.fixture
def run(tmp_path):
    folder = write_run(
        tmp_path / "a run", data__validation_size=64, trainer__default_local_dir=str(tmp_path / "a run" / "checkpoints")
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / LAST).write_text("6")
    return folder


def test_the_end_shows_accuracy_before_and_after_with_intervals_and_the_commands(run):
    lines = ending_lines(read_run(run))
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "held-out accuracy %",
        "-------------------",
        "chain_sum",
        "spell_backward",
        "overall",
    ]
    assert lines[1].split()[3:] == ["before", "after", "step", "6"]
    for line, num_problems in ((lines[3], 32), (lines[5], 64)):
        before, after = (percent(mean, share_interval(mean, num_independent=num_problems)) for mean in (0.0, 0.6))
        assert line.split("  ", 1)[1].split() == f"{before} {after}".split()
    assert lines[6] == "95 % intervals in parentheses; 64 validation problems"
    assert [line.split()[0] for line in lines[8:]] == ["export", "evaluate", "report"]
    assert ending_lines(read_run(run), with_commands=False) == lines[:8]


def test_the_commands_have_real_paths_in_the_words_of_a_shell(run):
    commands = {purpose: shlex.split(command) for purpose, command in follow_up_commands(read_run(run))}
    assert commands["export"][1:] == [
        "utils/load_fsdp_to_hf.py",
        f"{run}/checkpoints/global_step_6",
        f"{run}/hf_step_6",
    ]
    assert commands["evaluate"][-2:] == ["--model", f"{run}/hf_step_6"]
    assert commands["report"][1:] == ["utils/report.py", str(run)]


def test_a_moved_run_names_its_present_folder(run, tmp_path):
    moved = run.rename(tmp_path / "moved")
    assert f"{moved}/checkpoints/global_step_6" in dict(follow_up_commands(read_run(moved)))["export"]


def test_a_run_without_checkpoints_names_only_the_report(run):
    (run / "checkpoints" / LAST).unlink()
    assert [purpose for purpose, _ in follow_up_commands(read_run(run))] == ["report"]


def test_a_long_table_is_cut():
    records = [{"step": 2} | {f"val-core/dataset_{number:02}/acc/mean@1": 0.5 for number in range(70)}]
    lines = held_out_table(held_out_accuracies(records, validation_size=140), validation_size=140).splitlines()
    assert len(lines) == 2 + 12 + 2 + 1
    assert "and 58 more (in the report)" in lines[14] and lines[15].startswith("overall")
    assert lines[2].split()[1] == "-"
