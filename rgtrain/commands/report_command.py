"""The command that writes the report of training runs, or the index of a folder of runs and evaluations."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rgtrain.errors import exit_on_config_error

_DESCRIPTION = """\
Write one self-contained HTML page about training runs: {program} RUN [RUN ...]

RUN is the folder of a run (its run_dir), which may still be going on. Runs that differ only in their seeds are drawn as
one band. By default, the page of one run is RUN/report.html, and that of several is report.html beside the first.

{program} DIR, with a folder of runs and evaluations such as outputs/evaluation, writes DIR/index.html, which lists them
with links to their reports.
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="the page to write")
    parser.add_argument(
        "--watch", type=_seconds, metavar="SECONDS", help="write the page again every so many seconds, until Ctrl-C"
    )
    options = parser.parse_args(arguments)
    # After the arguments are read: these load Hydra and the readers.
    from rgtrain.provenance import mask_secrets
    from rgtrain.reporting.report_index import INDEX, is_index_folder, write_index
    from rgtrain.reporting.run_report import write_run_report

    def write() -> None:
        if is_index:
            write_index(folder, page=page)
        else:
            write_run_report(options.runs, page=page)

    with exit_on_config_error(transform=mask_secrets):
        folder = options.runs[0] if len(options.runs) == 1 else options.runs[0].resolve().parent
        is_index = len(options.runs) == 1 and is_index_folder(folder)
        page = options.output or folder / (INDEX if is_index else "report.html")
        write()
        print(f"written: {page}")
        while options.watch is not None:
            try:
                time.sleep(options.watch)
            except KeyboardInterrupt:
                return
            write()


def _seconds(word: str) -> float:
    seconds = float(word)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds
