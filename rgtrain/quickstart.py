"""The quickstart: train, export the last checkpoint, evaluate base and trained model, compare.

Each step is one of the project's commands in a process of its own, and is skipped where its result is there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import yaml

from rgtrain.checkpoints.checkpoint_store import LAST, recorded_last
from rgtrain.config.run_config import RunConfig
from rgtrain.evaluation.evaluation_config import load_config
from rgtrain.machine.devices import num_gpus
from rgtrain.paths import PROJECT_ROOT, project_path
from rgtrain.provenance import masked_command
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.comparison_tables import as_text
from rgtrain.reporting.evaluation_reader import read_evaluation


class StepFailed(RuntimeError):
    """A command of the quickstart failed or was stopped, with `exit_code`; it has said why itself."""

    def __init__(self, message: str, *, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run(*, run_dir: Path, overrides: Sequence[str] = ()) -> str:
    """Do what is left of the quickstart in `run_dir`; the table of accuracies and where everything lies.

    `overrides` are `key=value` words for train_grpo.py. Raises StepFailed with the command that failed.
    """
    run_dir = run_dir.absolute()
    experiment = "quickstart_gpu" if num_gpus() else "quickstart"
    _command("1/4 train", "train_grpo.py", "--config-name", experiment, f"run_dir={run_dir}", *overrides)
    config = RunConfig.of(yaml.safe_load((run_dir / "config.yaml").read_text()))
    checkpoints = config.trainer.default_local_dir
    step = recorded_last(checkpoints)
    if step is None:
        raise StepFailed(f"there is no finished training in {str(run_dir)!r}: {LAST} names no step", exit_code=1)
    checkpoint, exported = checkpoints / f"global_step_{step}", run_dir / f"hf_step_{step}"
    if not exported.exists():
        _command("2/4 export", "utils/load_fsdp_to_hf.py", str(checkpoint), str(exported))
    evaluation = project_path(config.data.held_out_files[0])
    results = [
        _evaluate("3/4 evaluate the base model", evaluation, config.model.path, run_dir),
        _evaluate("4/4 evaluate the trained model", evaluation, str(exported), run_dir),
    ]
    table = as_text(compare([read_evaluation(folder) for folder in results]))
    places = {"checkpoint": checkpoint, "exported model": exported, "results": results[0].parent}
    return "\n".join([table, "", *(f"{name + ':':<16}{place}" for name, place in places.items())])


def _evaluate(title: str, evaluation: Path, model: str, run_dir: Path) -> Path:
    """The folder with the results of `model` on the problems of `evaluation`, made if it isn't there."""
    output_dir = str(run_dir / "evaluation")
    # Where results are there already, only this command can tell whether they are of this evaluation.
    options = ["--config", str(evaluation), "--model", model, "--output-dir", output_dir]
    _command(title, "evaluation/evaluate_model.py", *options)
    config = load_config(evaluation, overrides={"model_path": model, "output_dir": output_dir})
    return config.results_folder


def _command(title: str, program: str, *arguments: str) -> None:
    say(f"\n== {title}")
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-u", str(PROJECT_ROOT / program), *arguments])
    with _signals_passed_to(process):
        code = process.wait()
    if code:
        # As a shell would say it, where a signal was the end.
        exit_code = code if code > 0 else 128 - code
        raise StepFailed(
            f"{title} ended with exit code {code}: {masked_command([program, *arguments])}", exit_code=exit_code
        )
    say(f"== {title}: {time.monotonic() - started:.0f} s")


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line to the terminal, which may be gone.

    Args:
        line: The text.
        file: Where to; None: standard output.
    """
    file = file or sys.stdout
    try:
        print(line, file=file, flush=True)
    except OSError:
        # Python would try again at its exit, fail, and exit with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


@contextmanager
def _signals_passed_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass signals on: the command knows how to save its work. A SIGHUP that nohup ignores stays ignored."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, lambda received, _: process.send_signal(received)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
