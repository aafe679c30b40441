"""The page of an evaluation while it runs: progress, and accuracies so far with their intervals."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rgtrain.evaluation.evaluation_progress import say
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.results import ResultsFolder
from rgtrain.evaluation.runner import RunningEvaluation
from rgtrain.evaluation.summary import by_dataset
from rgtrain.files import write_atomically
from rgtrain.provenance import mask_secrets
from rgtrain.reporting.bar_charts import Bar, bar_chart
from rgtrain.reporting.rendering import render
from rgtrain.stats import mean, mean_interval
from rgtrain.tables import duration_text, percent

# The page is written at most this often.
_WRITE_EVERY_S = 10.0
# A page of this age, or of this many pauses, says that its process is probably gone.
_STALE_AFTER_S, _STALE_AFTER_PAUSES = 120.0, 4
# The largest share of the evaluation's time that writing the page may take.
_MAX_SHARE = 0.005


@dataclass(frozen=True)
class LiveRow:
    """The figures of a dataset, or of all of them, so far.

    Attributes:
        name: The name of the dataset, or "overall".
        category: Its category; empty for all of them.
        num_answers: The number of judged answers.
        num_wanted: The number of answers in the end.
        accuracy: The share of answers with score 1, without refused requests; None if there are none.
        interval: Its 95 % confidence interval, clustered by question.
        share_without_answer: The share of completions without an answer.
        share_truncated: The share of completions that were cut off.
        num_errors: The number of refused requests and of answers that could not be judged.
    """

    name: str
    category: str
    num_answers: int
    num_wanted: int
    accuracy: float | None
    interval: tuple[float, float] | None
    share_without_answer: float | None
    share_truncated: float | None
    num_errors: int


@contextmanager
def live_report(running: RunningEvaluation) -> Iterator[None]:
    """Write the page of a running evaluation in the background, again and again while the block runs.

    The page reloads itself. If the block raises, the page says so and no longer reloads; if this process is killed, the
    page notices that it is not written any more. `write_report` replaces it in the end.

    Args:
        running: The evaluation.
    """
    page = ResultsFolder(running.config.results_folder).report
    is_over = threading.Event()
    thread = threading.Thread(target=_keep_writing, args=(running, page, is_over), daemon=True, name="live report")
    thread.start()
    try:
        yield
    except BaseException:
        is_over.set()
        thread.join()
        _write(running, page, is_stopped=True)
        raise
    finally:
        is_over.set()
        thread.join()


def _keep_writing(running: RunningEvaluation, page: Path, is_over: threading.Event) -> None:
    pause = 0.0
    while not is_over.wait(pause):
        started = time.perf_counter()
        if not _write(running, page, is_stopped=False):
            return
        pause = _pause(time.perf_counter() - started)


def _pause(cost_s: float) -> float:
    """Return the seconds until the next page, if one costs so many seconds."""
    return max(_WRITE_EVERY_S, cost_s / _MAX_SHARE)


def _write(running: RunningEvaluation, page: Path, *, is_stopped: bool) -> bool:
    """Write the page and return whether that succeeded. Without it, the evaluation goes on."""
    try:
        write_atomically(page, live_page(running, is_stopped=is_stopped))
    # No fault of the page may end an evaluation or hide the error that ended it.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        say(f"warning: {page} cannot be written ({reason}); the evaluation goes on without it")
        return False
    return True


def live_page(running: RunningEvaluation, *, is_stopped: bool) -> str:
    """Return the page.

    Args:
        running: The evaluation. Its answers may grow meanwhile.
        is_stopped: Whether the evaluation has been stopped or has failed.
    """
    started = time.perf_counter()
    config, answers = running.config, list(running.answers)
    wanted = [dataset.num_problems(config.limit) * config.num_samples for dataset in config.datasets]
    rows = [
        _row(dataset.name, dataset.category, group, num_wanted)
        for dataset, group, num_wanted in zip(
            config.datasets, by_dataset(config.datasets, answers), wanted, strict=True
        )
    ]
    overall = _row("overall", "", answers, sum(wanted))
    bars = [
        Bar(row.name, row.accuracy, row.interval, percent(row.accuracy), is_sum=row is overall)
        for row in (overall, *rows)
        if row.accuracy is not None and row.interval is not None
    ]
    return render(
        "live.html.j2",
        script="live.js",
        name=config.name,
        model=mask_secrets(config.model_path),
        is_stopped=is_stopped,
        reload_s=None if is_stopped else math.ceil(_WRITE_EVERY_S),
        # The figures are nearly all of a large page's cost.
        stale_after_s=max(_STALE_AFTER_S, _STALE_AFTER_PAUSES * _pause(time.perf_counter() - started)),
        tally=running.tally,
        num_waiting=running.tally.num_received - len(answers),
        left=_time_left(running),
        speed=_speed(running, answers),
        overall=overall,
        rows=rows,
        chart=bar_chart(bars) if bars else None,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
        written_s=time.time(),
    )


def _row(name: str, category: str, answers: Sequence[Answer], num_wanted: int) -> LiveRow:
    given = [answer for answer in answers if not answer.refused]
    right = [float(answer.is_right) for answer in given]
    return LiveRow(
        name,
        category,
        len(answers),
        num_wanted,
        mean(right) if right else None,
        mean_interval(right, clusters=[answer.fingerprint for answer in given]) if right else None,
        mean(answer.answer is None for answer in given) if given else None,
        mean(answer.finish_reason == "length" for answer in given) if given else None,
        len(answers) - len(given) + sum(answer.error is not None for answer in given),
    )


def _time_left(running: RunningEvaluation) -> str:
    """Return the time left at the speed of this process; "unknown" before its first answer."""
    done = running.tally.num_received - running.num_before
    if running.answering_since is None or not done:
        return "unknown"
    seconds = (time.monotonic() - running.answering_since) / done
    return duration_text(seconds * (running.tally.num_wanted - running.tally.num_received))


def _speed(running: RunningEvaluation, answers: Sequence[Answer]) -> str:
    """Return the answers per minute of this process."""
    if running.answering_since is None:
        return "the model is starting"
    minutes = (time.monotonic() - running.answering_since) / 60
    done = running.tally.num_received - running.num_before
    return f"{done / minutes:.3g} answers per minute" if minutes and done else "no answer yet"
