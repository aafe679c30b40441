"""Print the progress lines of a run, which carry a secret mark so that no other text reaches the terminal."""

import os
import sys

# The environment variable that holds the mark of a run's progress lines. All processes of the run inherit it. Only
# marked lines reach the terminal (see run_log.py). The mark is random, so that no other text can imitate it.
MARK_VARIABLE = "RGTRAIN_PROGRESS_MARK"
# The mark outside of a run and in every log.
PLAIN_MARK = "[rgtrain] "


def mark() -> str:
    """Return the text that marks a progress line of this run."""
    return os.environ.get(MARK_VARIABLE, PLAIN_MARK)


def announce(text: str) -> None:
    """Show `text` on the run's terminal, from any of the run's processes."""
    # One write: print writes the line end separately, and another thread could write in between.
    sys.stdout.write(f"{mark()}{text}\n")
    sys.stdout.flush()
