"""The quickstart: train, export the last checkpoint, evaluate the base and the trained model, and compare them.

Each step runs one of the project's commands in a separate process. A step whose result exists is skipped.
"""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from rgtrain.checkpoints.checkpoint_store import LAST, recorded_last
from rgtrain.config.composition import with_declared_defaults
from rgtrain.config.default_experiment import default_experiment
from rgtrain.config.run_config import RunConfig
from rgtrain.evaluation.evaluation_config import load_config
from rgtrain.jobs.signals import CommandRunner
from rgtrain.jobs.terminal import say
from rgtrain.machine.own_commands import own_command
from rgtrain.paths import project_path
from rgtrain.provenance import masked_command
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.comparison_tables import as_text
from rgtrain.reporting.evaluation_reader import read_evaluation
from rgtrain.tables import labelled_lines


class StepFailed(RuntimeError):
    """A command of the quickstart failed or was stopped with `exit_code`. The command has printed the reason."""

    def __init__(self, message: str, *, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run(*, run_dir: Path, overrides: Sequence[str] = ()) -> str:
    """Run the remaining steps of the quickstart in `run_dir`.

    Args:
        run_dir: The run's folder, which may hold the results of earlier steps.
        overrides: `key=value` arguments for the training.

    Returns:
        A table of accuracies, followed by the paths of the results and the command that shows both models' answers.

    Raises:
        StepFailed: A command failed or was stopped.
    """
    run_dir = run_dir.absolute()
    words = ["--config-name", default_experiment(), f"run_dir={run_dir}", *overrides]
    _run_command("1/4 train", own_command("train", *words))
    config = RunConfig.of(with_declared_defaults(yaml.safe_load((run_dir / "config.yaml").read_text())))
    checkpoints = config.trainer.default_local_dir
    step = recorded_last(checkpoints)
    if step is None:
        raise StepFailed(f"no finished training in {str(run_dir)!r}, because {LAST} names no step", exit_code=1)
    checkpoint, exported = checkpoints / f"global_step_{step}", run_dir / f"hf_step_{step}"
    if not exported.exists():
        _run_command("2/4 export", own_command("export", str(checkpoint), str(exported)))
    evaluation = project_path(config.data.held_out_files[0])
    results = [
        _evaluate("3/4 evaluate the base model", evaluation, config.model.path, run_dir),
        _evaluate("4/4 evaluate the trained model", evaluation, str(exported), run_dir),
    ]
    table = as_text(compare([read_evaluation(folder) for folder in results]))
    before, after = (shlex.quote(str(folder)) for folder in results)
    page = shlex.quote(str(run_dir / "comparison.html"))
    rows = [
        ("checkpoint", str(checkpoint)),
        ("exported model", str(exported)),
        ("results", str(results[0].parent)),
        ("report", str(run_dir / "report.html")),
        ("compare answers", f"python evaluation/compare_models.py {before} {after} --html {page}"),
    ]
    return "\n".join([table, "", *labelled_lines(rows)])


def _evaluate(title: str, evaluation: Path, model: str, run_dir: Path) -> Path:
    """Evaluate `model` on the problems of `evaluation` and return the folder of the results."""
    output_dir = str(run_dir / "evaluation")
    # If results exist, only this command can check whether they belong to this evaluation.
    options = ["--config", str(evaluation), "--model", model, "--output-dir", output_dir]
    _run_command(title, own_command("evaluate", *options))
    config = load_config(evaluation, overrides={"model_path": model, "output_dir": output_dir})
    return config.results_folder


def _run_command(title: str, command: Sequence[str]) -> None:
    say(f"\n== {title}")
    started = time.monotonic()
    with CommandRunner().listening() as runner:
        code = runner.run(command)
    if code:
        raise StepFailed(f"{title} ended with exit code {code}: {masked_command(command)}", exit_code=code)
    say(f"== {title}: {time.monotonic() - started:.0f} s")
