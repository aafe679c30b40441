"""Lines printed by an evaluation."""

import os

from rgtrain.evaluation.evaluation_progress import say


def test_printing_does_not_fail_if_the_terminal_is_gone():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        say("a line", file=gone)
        say("another", file=gone)
