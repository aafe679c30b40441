"""The lines that an evaluation prints."""

import os

from rgtrain.evaluation.evaluation_progress import say


def test_an_evaluation_goes_on_when_its_terminal_is_gone():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        say("a line", file=gone)
        say("another", file=gone)
