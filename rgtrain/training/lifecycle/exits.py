"""Report why a run ended before its last step, and how to continue it."""

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from rgtrain.checkpoints.checkpoint_store import CheckpointStore
from rgtrain.config.run_config import RunConfig
from rgtrain.jobs.watchdog import watched
from rgtrain.provenance import mask_secrets
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.out_of_memory import memory_hint
from rgtrain.training.lifecycle.run_log import run_log
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped
from rgtrain.training.lifecycle.training_activity import ACTIVITY


@contextmanager
def report_exit(config: RunConfig, *, stopping: Callable[[], None]) -> Iterator[None]:
    """Log the run in this block. If the run does not finish, report why and end the process.

    Args:
        config: The run's configuration.
        stopping: Called when the run is asked to stop.
    """
    log = config.run_dir / "train.log"
    try:
        with run_log(log), _ended_from_outside(config, stopping), _traceback_printed():
            yield
    except TrainingStopped as stopped:
        leave(STOP.exit_code, f"{stopped}; {_outlook(config)}", log=log)
    except BaseException as error:
        hint = memory_hint(traceback.format_exc(), config)
        lines = [f"error: {cause(error)}; {_outlook(config)}", hint, f"the run's full log: {log}"]
        # A run that was asked to stop may lose a process meanwhile. It is to be started again all the same.
        leave(STOP.exit_code if STOP.is_made else 1, *filter(None, lines), log=log)


def leave(exit_code: int, *lines: str, log: Path | None = None) -> NoReturn:
    """Print `lines` and end this process without Ray's slow atexit handler; the clean-up process removes the rest.

    Args:
        exit_code: Of this process.
        lines: For the terminal.
        log: A file that gets the lines too: the terminal may be gone.
    """
    text = "".join(f"{mask_secrets(line)}\n" for line in lines)
    if log is not None:
        with suppress(OSError), log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)
    for stream, last_words in ((sys.stdout, text), (sys.stderr, "")):
        # A terminal may be gone, or lack a character.
        with suppress(OSError, ValueError):
            stream.write(last_words)
            stream.flush()
    os._exit(exit_code)


@contextmanager
def _traceback_printed() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, TrainingStopped):
            traceback.print_exc()
        raise


@contextmanager
def _ended_from_outside(config: RunConfig, stopping: Callable[[], None]) -> Iterator[None]:
    """Let signals and the watchdog end the run in this block."""
    end, watchdog = partial(_end_now, config), config.trainer.watchdog
    with (
        STOP.listening(limit_s=config.trainer.stop_within_s, end=end, begun=stopping),
        watched(
            ACTIVITY,
            report_after_s=watchdog.report_after_s,
            end_after_s=watchdog.end_after_s,
            end=end,
            announce=announce,
        ),
    ):
        yield


def cause(error: BaseException) -> str:
    """Return the cause of a failure in one line: a full disk, a worker that died, or the first exception."""
    from ray.exceptions import RayActorError

    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{one.strerror}: {one.filename or 'a disk is full'} (in {ACTIVITY})"
        # Ray says so too of a worker that raised when it was made; then that is the cause.
        if isinstance(one, RayActorError) and "creation task" not in str(one):
            return f"a training worker died in {ACTIVITY}: {_why_one_died()}"
    while error.__cause__ is not None:
        error = error.__cause__
    last_line = str(error).strip().splitlines()[-1:] or [""]
    return f"{type(error).__name__}: {last_line[0]} (in {ACTIVITY})"


def _why_one_died() -> str:
    if _num_killed_for_memory() > _KILLED_BEFORE:
        return "this machine ran out of memory, and its kernel killed a process"
    return "killed from outside, or crashed; its last words are in the log"


def _num_killed_for_memory() -> int:
    """By this machine's kernel, since it started."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts.get("oom_kill", 0))


_KILLED_BEFORE = _num_killed_for_memory()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _outlook(config: RunConfig) -> str:
    store = CheckpointStore(config.trainer.default_local_dir, keep=None, say=print)
    last = max(store.steps(), default=None)
    if last is None:
        return "no checkpoint saved"
    if config.trainer.resume_mode != "auto":
        return f"the last checkpoint is of step {last}"
    return f"the same command continues after step {last}"


def _end_now(config: RunConfig, reason: str, exit_code: int) -> None:
    """End this process from any thread, even if other threads are stuck."""
    announce(f"{reason}; {_outlook(config)}")
    # The log's thread passes the line on meanwhile.
    time.sleep(0.5)
    leave(exit_code)
