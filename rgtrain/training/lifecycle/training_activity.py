"""The activity of this process's training run, fed by verl's own timers."""

from collections.abc import Iterator
from contextlib import contextmanager
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


def install() -> None:
    """Have verl's timers, which name all phases of a step, set the phase of ACTIVITY."""
    from verl.trainer.ppo.v1 import trainer_base, trainer_sync

    verl_timer = trainer_base.marked_timer
    if trainer_sync.marked_timer is not verl_timer:
        raise RuntimeError("verl's two trainer modules no longer share one marked_timer: adapt rgtrain's activity.py")

    @contextmanager
    def timer(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        with ACTIVITY.within(name), verl_timer(name, *arguments, **options):
            yield

    trainer_base.marked_timer = trainer_sync.marked_timer = timer
