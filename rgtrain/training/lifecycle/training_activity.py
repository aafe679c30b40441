"""The activity of this process's training run, fed by verl's own timers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rgtrain.jobs.activity import Activity

# verl's timers, as the project calls them.
PHASES = {
    "gen": "generate",
    "old_log_prob": "log-probs",
    "ref": "reference",
    "values": "values",
    "update_critic": "critic",
    "update_actor": "update",
    "update_weights": "sync",
    "save_checkpoint": "save",
    "testing": "validate",
}

ACTIVITY = Activity(PHASES)


def setting_phase(original: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
    """Return verl's timer, which sets the phase of ACTIVITY too."""

    @contextmanager
    def marked_timer(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        with ACTIVITY.within(name), original(name, *arguments, **options):
            yield

    return marked_timer
