"""The end of a run on the terminal: held-out accuracy before and after, and the commands that come next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rgtrain.checkpoints.checkpoint_store import recorded_last
from rgtrain.checkpoints.validation_accuracy import HeldOutAccuracy, held_out_accuracies, overall_accuracy
from rgtrain.reporting.run_reader import RunRecord
from rgtrain.tables import labelled_lines, percent, printed_table

# An environment variable of a training that the quickstart has started. The quickstart exports and evaluates itself.
PART_OF_QUICKSTART = "RGTRAIN_PART_OF_QUICKSTART"
# A longer table hides the lines after it. The report has all rows.
_MAX_ROWS = 12


def ending_lines(run: RunRecord, *, with_commands: bool = True) -> list[str]:
    """Return the lines that a finished run prints.

    Args:
        run: The content of the run's folder.
        with_commands: Whether the lines include the commands that come next.

    Returns:
        The table of held-out accuracy, if the run was validated, and the commands.
    """
    size = run.setting("data.validation_size", 0)
    datasets = run.setting("data.validation_datasets", {})
    accuracies = held_out_accuracies(run.records, validation_size=size, datasets=datasets)
    table = ["", *held_out_table(accuracies, validation_size=size).splitlines(), ""] if accuracies else []
    return [*table, *(labelled_lines(follow_up_commands(run)) if with_commands else [])]


def held_out_table(accuracies: Sequence[HeldOutAccuracy], *, validation_size: int) -> str:
    """Return the table of held-out accuracy before training and at the last validation.

    Args:
        accuracies: The accuracies of at least one dataset.
        validation_size: The number of problems of a validation.

    Returns:
        The table in percent with 95 % intervals, with the mean over datasets as its last row if there are several.
    """
    last = max(accuracy.values["now"][0] for accuracy in accuracies)
    rows = [_row(accuracy) for accuracy in accuracies[:_MAX_ROWS]]
    if len(accuracies) > _MAX_ROWS:
        rows.append([f"and {len(accuracies) - _MAX_ROWS} more (in the report)", "", ""])
    if len(accuracies) > 1:
        rows.append(_row(overall_accuracy(accuracies, validation_size=validation_size)))
    note = f"95 % intervals in parentheses; {validation_size} validation problems"
    return f"{printed_table(['held-out accuracy %', 'before', f'after step {last}'], rows)}\n{note}"


def _row(accuracy: HeldOutAccuracy) -> list[str]:
    cells = []
    for name in ("before", "now"):
        _, mean, low, high = accuracy.values.get(name, (0, None, 0.0, 0.0))
        cells.append(percent(mean, (low, high)))
    return [accuracy.dataset, *cells]


def follow_up_commands(run: RunRecord) -> list[tuple[str, str]]:
    """Return the commands that export and evaluate the last checkpoint and report the run, each with its purpose.

    Args:
        run: The content of the run's folder.

    Returns:
        Purposes and commands for a shell in the project's folder. Without a checkpoint, there is only the report's.
    """
    commands = []
    checkpoints = _checkpoints(run)
    step = recorded_last(checkpoints)
    if step is not None:
        exported = _quoted(run.folder / f"hf_step_{step}")
        evaluation = shlex.quote(str((run.setting("data.held_out_files") or ["evaluation/quick.yaml"])[0]))
        commands = [
            ("export", f"python utils/load_fsdp_to_hf.py {_quoted(checkpoints / f'global_step_{step}')} {exported}"),
            ("evaluate", f"python evaluation/evaluate_model.py --config {evaluation} --model {exported}"),
        ]
    return [*commands, ("report", f"python utils/report.py {_quoted(run.folder)}")]


def _checkpoints(run: RunRecord) -> Path:
    """Return the folder of checkpoints, also if the run's folder was moved."""
    configured = Path(str(run.setting("trainer.default_local_dir")))
    inside = run.folder / configured.name
    return inside if inside.is_dir() else configured


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
