"""The command that compares evaluations of the same problems."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rgtrain.errors import exit_on_config_error

_DESCRIPTION = """\
Compare evaluations of the same problems, each with the first: {program} BASE OTHER [...]

BASE and OTHER are results folders of an evaluation, or the summary.json in them.
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
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="RESULTS_FOLDER")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="also write the tables there")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="also write a page with charts and answers")
    options = parser.parse_args(arguments)
    # After the arguments are read: these load numpy and the evaluation's readers.
    from rgtrain.provenance import mask_secrets
    from rgtrain.reporting.comparison import compare
    from rgtrain.reporting.comparison_page import write_comparison
    from rgtrain.reporting.comparison_tables import as_markdown, as_text
    from rgtrain.reporting.evaluation_reader import read_evaluation

    with exit_on_config_error(transform=mask_secrets):
        evaluations = [read_evaluation(path) for path in options.evaluations]
        comparisons = compare(evaluations)
        print(as_text(comparisons))
        if options.markdown is not None:
            options.markdown.parent.mkdir(parents=True, exist_ok=True)
            options.markdown.write_text(as_markdown(comparisons), encoding="utf-8")
            print(f"written: {options.markdown}")
        if options.html is not None:
            write_comparison(evaluations, comparisons, page=options.html)
            print(f"written: {options.html}")
