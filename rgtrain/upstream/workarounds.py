"""How a workaround says that it is no longer needed."""


class WorkaroundObsolete(RuntimeError):
    """verl, vLLM or torch has what a workaround supplies: the workaround has to go."""


def still_needed(missing: bool, what: str) -> None:
    """Raise WorkaroundObsolete unless `missing`: what the workaround supplies is still not there."""
    if not missing:
        raise WorkaroundObsolete(f"{what}: remove the workaround for it, found where this was raised")
