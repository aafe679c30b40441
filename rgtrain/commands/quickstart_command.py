"""The command that trains the embedded model, exports it and evaluates it before and after."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rgtrain.errors import exit_on_config_error
from rgtrain.jobs.terminal import say
from rgtrain.machine.environment import require_stack
from rgtrain.paths import PROJECT_ROOT

_DESCRIPTION = """\
Train the embedded model, export it, evaluate it before and after, and print a table.

{program} [--run-dir DIR] [key=value ...]     (key=value are training's, such as seed=2)
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command. It exits with the code of the step that failed or was stopped.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=PROJECT_ROOT / "runs" / "quickstart",
        metavar="DIR",
        help="the run's folder, by default runs/quickstart; steps that finished there are skipped",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration values of the training")
    options = parser.parse_intermixed_args(arguments)
    require_stack()
    # After the arguments are read: these load the training's configuration.
    from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
    from rgtrain.quickstart import StepFailed, run
    from rgtrain.reporting.run_ending import PART_OF_QUICKSTART

    os.environ[PART_OF_QUICKSTART] = "1"
    clean_up_after_this_process()
    try:
        with exit_on_config_error():
            say(f"\n{run(run_dir=options.run_dir, overrides=options.overrides)}")
    except StepFailed as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
