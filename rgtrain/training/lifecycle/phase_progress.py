"""Show the progress of a run's long phases on the terminal."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rgtrain.config.run_config import RunConfig
from rgtrain.jobs.activity import Activity
from rgtrain.tables import duration_text

# Shorter phases show nothing.
_LONG_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 1.0
# verl's timer of the whole step, which is the phase between two others.
_BETWEEN_PHASES = "step"


@contextmanager
def phases_shown(
    activity: Activity, *, num_rounds: Mapping[str, int], announce: Callable[[str], None]
) -> Iterator[None]:
    """Show the progress of long phases from a thread for the duration of the block.

    The thread looks once per second at the reports that workers send for the watchdog anyway.

    Args:
        activity: The run's activity.
        num_rounds: The number of rounds of phases that have several, see `update_rounds`.
        announce: Shows a line to the user.

    Yields:
        Nothing.
    """
    is_over = threading.Event()
    progress = PhaseProgress(activity, num_rounds=num_rounds)

    def watch() -> None:
        while not is_over.wait(_LOOK_EVERY_SECONDS):
            if line := progress.line(time.monotonic()):
                announce(line)

    threading.Thread(target=watch, daemon=True, name="phase-progress").start()
    try:
        yield
    finally:
        is_over.set()


def update_rounds(config: RunConfig) -> dict[str, int]:
    """Return the number of mini-batches of each phase that updates a model. Workers count micro-batches of each one."""
    num_mini_batches = max(1, config.data.train_batch_size // config.actor.ppo_mini_batch_size)
    return {
        "update_actor": config.actor.ppo_epochs * num_mini_batches,
        "update_critic": config.critic.ppo_epochs * num_mini_batches,
    }


class PhaseProgress:
    """Decide when a phase is shown: after 60 s and at 25, 50 and 75 %, or at doubled times if no share is known.

    Args:
        activity: The run's activity.
        num_rounds: The number of rounds of phases that have several.
    """

    def __init__(self, activity: Activity, *, num_rounds: Mapping[str, int]):
        self._activity = activity
        self._num_rounds = num_rounds
        self._began_at = 0.0
        self._quarter = 0
        self._next_s = _LONG_SECONDS

    def line(self, now: float) -> str | None:
        """Return the line to show, or None.

        Args:
            now: The time of `time.monotonic`.

        Returns:
            The phase, its share if it is known, the elapsed time and the place.
        """
        activity = self._activity
        if activity.began_at != self._began_at:
            self._began_at, self._quarter, self._next_s = activity.began_at, 0, _LONG_SECONDS
        elapsed = now - self._began_at
        if elapsed < _LONG_SECONDS or activity.phase == _BETWEEN_PHASES:
            return None
        share = self._share()
        quarter = 0 if share is None else int(4 * share)
        is_first = self._next_s == _LONG_SECONDS
        if not (is_first or quarter > self._quarter or (share is None and elapsed >= self._next_s)):
            return None
        self._quarter = max(quarter, self._quarter)
        self._next_s = 2 * elapsed
        return phase_line(str(activity), seconds=elapsed, share=share, place=activity.place())

    def _share(self) -> float | None:
        done = self._activity.num_rounds()
        share = None if done is None else done / self._num_rounds.get(self._activity.phase, 1)
        # A phase may have more rounds than expected, such as generation that draws prompts again.
        return share if share is not None and share <= 1 else None


def phase_line(phase: str, *, seconds: float, share: float | None, place: str) -> str:
    """Return the line about a phase that is not over.

    >>> phase_line("generate of step 3", seconds=64, share=0.27, place="completion 138 of 512")
    'generate of step 3: 27% after 64 s (completion 138 of 512)'
    """
    done = "still running" if share is None else f"{share:.0%}"
    # Several workers at different places would make the line long.
    at = f" ({place})" if place and ";" not in place else ""
    return f"{phase}: {done} after {duration_text(seconds)}{at}"
