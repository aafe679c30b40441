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
from rgtrain.training.lifecycle.phase_progress import phases_shown, update_rounds
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
        with run_log(log), _stoppable(config, stopping), _traceback_printed():
            yield
    except TrainingStopped as stopped:
        print_and_exit(STOP.exit_code, f"{stopped}; {_how_to_continue(config)}", log=log)
    except BaseException as error:
        hint = memory_hint(traceback.format_exc(), config)
        lines = [f"error: {cause(error)}; {_how_to_continue(config)}", hint, f"the run's full log: {log}"]
        # A run that was asked to stop may lose a worker meanwhile. Schedulers should still start it again.
        print_and_exit(STOP.exit_code if STOP.is_made else 1, *filter(None, lines), log=log)


def print_and_exit(exit_code: int, *lines: str, log: Path | None = None) -> NoReturn:
    """Print `lines` and end this process at once.

    Ray's slow atexit handler does not run. The clean-up process removes the rest.

    Args:
        exit_code: The exit code of this process.
        *lines: The lines to print, in which secrets are masked.
        log: A file to append the lines to, because the terminal may be gone.
    """
    text = "".join(f"{mask_secrets(line)}\n" for line in lines)
    if log is not None:
        with suppress(OSError), log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)
    for stream, output in ((sys.stdout, text), (sys.stderr, "")):
        # The terminal may be gone, or its encoding may lack a character.
        with suppress(OSError, ValueError):
            stream.write(output)
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
def _stoppable(config: RunConfig, stopping: Callable[[], None]) -> Iterator[None]:
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
        phases_shown(ACTIVITY, num_rounds=update_rounds(config), announce=announce),
    ):
        yield


def cause(error: BaseException) -> str:
    """Return the cause of a failure in one line.

    Args:
        error: The exception that ended the run. Its whole chain of causes and contexts is searched.

    Returns:
        A full disk or the death of a worker, if the chain contains one. Otherwise the exception that started the chain
        of explicit causes, with its type and the last line of its message. The current phase is always named.
    """
    from ray.exceptions import RayActorError

    for linked in _chain(error):
        if isinstance(linked, OSError) and linked.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{linked.strerror}: {linked.filename or 'a disk is full'} (in {ACTIVITY})"
        # Ray raises this error also for a worker whose constructor raised. The cause is then the worker's own error.
        if isinstance(linked, RayActorError) and "creation task" not in str(linked):
            return f"a training worker died in {ACTIVITY}: {_why_a_worker_died()}"
    while error.__cause__ is not None:
        error = error.__cause__
    last_line = str(error).strip().splitlines()[-1:] or [""]
    return f"{type(error).__name__}: {last_line[0]} (in {ACTIVITY})"


def _why_a_worker_died() -> str:
    if _num_killed_for_memory() > _KILLED_BEFORE:
        return "this machine ran out of memory, and its kernel killed a process"
    return "it crashed or was killed (the log has its last output)"


def _num_killed_for_memory() -> int:
    """Return the number of processes that this machine's kernel has killed for lack of memory since it booted."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts.get("oom_kill", 0))


# The count when this process started.
_KILLED_BEFORE = _num_killed_for_memory()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _how_to_continue(config: RunConfig) -> str:
    store = CheckpointStore(config.trainer.default_local_dir, keep=None, say=print)
    last = max(store.steps(), default=None)
    if last is None:
        return "no checkpoint saved"
    if config.trainer.resume_mode != "auto":
        return f"the last checkpoint is from step {last}"
    return f"the same command continues after step {last}"


def _end_now(config: RunConfig, reason: str, exit_code: int) -> None:
    """End this process from any thread, even if other threads are stuck."""
    announce(f"{reason}; {_how_to_continue(config)}")
    # Gives the log's thread time to print the line.
    time.sleep(0.5)
    print_and_exit(exit_code)
