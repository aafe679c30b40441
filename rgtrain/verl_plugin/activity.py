"""What a run is doing at the moment: the phase, the step, and whether anything moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rgtrain.verl_plugin.progress import PHASES


class Activity:
    """The innermost of verl's timed phases. Written by the trainer's threads, read by the watchdog's."""

    def __init__(self) -> None:
        self.phase = "start"
        self.step = 0
        self.num_moves = 0

    def moved(self) -> None:
        """Something has come that the run waited for."""
        self.num_moves += 1

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """`phase` is the run's while this lasts."""
        outer, self.phase = self.phase, phase
        self.moved()
        try:
            yield
            # After a failure the phase stays, for whoever tells of it.
            self.phase = outer
        finally:
            self.moved()

    def __str__(self) -> str:
        return f"{PHASES.get(self.phase, self.phase)} of step {self.step}" if self.step else self.phase


ACTIVITY = Activity()


def install() -> None:
    """Have verl's own timers, which name all phases of a step, tell ACTIVITY."""
    from verl.trainer.ppo.v1 import trainer_base, trainer_sync

    verl_timer = trainer_base.marked_timer
    assert trainer_sync.marked_timer is verl_timer

    @contextmanager
    def timer(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        with ACTIVITY.within(name), verl_timer(name, *arguments, **options):
            yield

    trainer_base.marked_timer = trainer_sync.marked_timer = timer
