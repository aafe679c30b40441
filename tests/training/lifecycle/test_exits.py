"""The line that reports why a run ended names the cause, not the exception that it led to."""

import errno
import itertools

from rgtrain.problems import Scorer
from rgtrain.training.lifecycle.exits import cause


def raised(*errors: Exception) -> Exception:
    """The last of `errors`, each raised from the one before."""
    for earlier, later in itertools.pairwise(errors):
        later.__cause__ = earlier
    return errors[-1]


def test_a_full_disk_is_named_even_if_a_library_raised_another_error_first():
    error = raised(
        RuntimeError("unexpected pos 8320 vs 8214"), OSError(errno.ENOSPC, "No space left on device", "runs")
    )
    assert cause(error) == "No space left on device: runs (in start)"


def test_the_first_of_several_exceptions_is_the_cause():
    assert cause(raised(KeyError("loss"), RuntimeError("the step failed"))) == "KeyError: 'loss' (in start)"


def test_a_scoring_server_that_is_gone_is_the_cause():
    with Scorer(num_workers=1) as scorer:
        scorer._pool._server._process.kill()
        scorer._pool._server._process.wait()
        try:
            scorer._pool._server.release(1)
        except RuntimeError as error:
            assert cause(error).startswith("RuntimeError: the scoring server ended unexpectedly")
