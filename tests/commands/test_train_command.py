"""The training command ends with the result of the run and the commands that come next."""

import pytest
from support.run_folders import write_run

from rgtrain.checkpoints.checkpoint_store import LAST
from rgtrain.commands.train_command import _finish
from rgtrain.reporting.run_ending import PART_OF_QUICKSTART


@pytest.mark.parametrize("in_quickstart", [False, True])
def test_a_finished_training_prints_its_result_the_commands_and_the_report(
    tmp_path, capsys, monkeypatch, in_quickstart
):
    monkeypatch.delenv(PART_OF_QUICKSTART, raising=False)
    if in_quickstart:
        monkeypatch.setenv(PART_OF_QUICKSTART, "1")
    run = write_run(tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / LAST).write_text("6")
    _finish(run)
    output = capsys.readouterr().out
    assert "held-out accuracy %" in output and "after step 6" in output
    assert output.endswith(f"report: {run}/report.html\n")
    assert (f"{run}/checkpoints/global_step_6 {run}/hf_step_6\n" in output) is not in_quickstart
    assert output.count("report.py") == (not in_quickstart)


def test_a_run_without_metrics_ends_with_a_warning(tmp_path, capsys):
    _finish(tmp_path)
    assert capsys.readouterr().out.startswith("warning: no report was written: ")
