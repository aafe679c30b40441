"""Record the activity of this process's training run. verl's timers set the phase."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rgtrain.jobs.activity import Activity

# The printed names of verl's timers.
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
    """Wrap verl's timer so that it also sets the phase of ACTIVITY."""

    @contextmanager
    def marked_timer(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        with ACTIVITY.within(name), original(name, *arguments, **options):
            yield

    return marked_timer
