"""The lines of a run that reach its terminal: they carry a mark that no other text has."""

import os
import sys

# The environment variable with the mark of a run's progress lines, which its processes inherit. Only marked lines reach
# the terminal (see run_log.py). The mark is random, so that other text, such as a model's answer, never looks like one.
MARK_VARIABLE = "RGTRAIN_PROGRESS_MARK"
# The mark outside of a run, and in every log.
PLAIN_MARK = "[rgtrain] "


def mark() -> str:
    """Return the text that marks a progress line of this run."""
    return os.environ.get(MARK_VARIABLE, PLAIN_MARK)


def announce(text: str) -> None:
    """Show `text` on the run's terminal, from any of the run's processes."""
    # In one write: print writes the end of the line by itself, and another thread's text may come between.
    sys.stdout.write(f"{mark()}{text}\n")
    sys.stdout.flush()
