"""What a run that ends before its last step says on its terminal: the cause in a line, and how to go on."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from rgtrain.checkpoint_store import CheckpointStore
from rgtrain.verl_plugin.activity import ACTIVITY
from rgtrain.verl_plugin.out_of_memory import memory_hint
from rgtrain.verl_plugin.progress import announce
from rgtrain.verl_plugin.run_log import run_log
from rgtrain.verl_plugin.stopping import STOP, Stopped
from rgtrain.verl_plugin.watchdog import watched


@contextmanager
def endings_told(config: DictConfig) -> Iterator[None]:
    """Log the run in this block. If it doesn't get to its end, say why, and end the process with a code that tells."""
    log = Path(config.run_dir) / "train.log"
    try:
        with run_log(log), _ended_from_outside(config), _traceback_printed():
            yield
    except Stopped as stopped:
        leave(STOP.exit_code, f"{stopped}; {_outlook(config)}")
    except BaseException as error:
        hint = memory_hint(traceback.format_exc(), config)
        lines = [f"error: {cause(error)}; {_outlook(config)}", hint, f"the run's full log: {log}"]
        # A run that was told to stop may lose a part meanwhile, and is to be started again all the same.
        leave(STOP.exit_code if STOP.is_made else 1, *filter(None, lines))


def leave(exit_code: int, *lines: str) -> NoReturn:
    """Say `lines` and end this process at once: what it leaves behind is seen to, and Ray's farewell takes seconds."""
    for line in lines:
        print(line)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


@contextmanager
def _traceback_printed() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Stopped):
            traceback.print_exc()
        raise


@contextmanager
def _ended_from_outside(config: DictConfig) -> Iterator[None]:
    """By a signal or the watchdog, for as long as this lasts."""
    end = partial(_end_now, config)
    with (
        STOP.listening(limit_s=config.trainer.stop_within_s, end=end),
        watched(ACTIVITY, **config.trainer.watchdog, end=end),
    ):
        yield


def cause(error: BaseException) -> str:
    """What went wrong, in a line."""
    from ray.exceptions import RayActorError

    for one in _chain(error):
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


def _outlook(config: DictConfig) -> str:
    store = CheckpointStore(Path(config.trainer.default_local_dir), keep=None, say=print)
    last = max(store.steps(), default=None)
    if last is None:
        return "no checkpoint was saved"
    if config.trainer.resume_mode != "auto":
        return f"the last checkpoint is that of step {last}"
    return f"the same command continues after step {last}"


def _end_now(config: DictConfig, reason: str, exit_code: int) -> None:
    """End this process from any thread, whatever the others do."""
    announce(f"{reason}; {_outlook(config)}")
    # Until the log's own thread has passed it on.
    time.sleep(0.5)
    leave(exit_code)
