"""Run Python's garbage collector rarely during a start, and as usual afterwards.

A start makes a million objects that stay, most of them by imports. The collector would visit them again and again,
which takes a quarter of the time of the imports.
"""

import gc

_USUAL = gc.get_threshold()
# The collector still runs, so that cyclic garbage cannot fill the memory if no call of `collect_as_usual` follows.
_RARE = (100_000, 50, 100)


def collect_rarely() -> None:
    """Let the garbage collector run rarely until `collect_as_usual` is called."""
    gc.set_threshold(*_RARE)


def ignore_existing_objects() -> None:
    """Let all later collections skip the objects that exist now. Call it after imports, before anything large is made.

    Garbage among these objects is never freed.
    """
    gc.freeze()


def collect_as_usual() -> None:
    """Let the garbage collector run as often as before `collect_rarely`, without visiting the existing objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_USUAL)
