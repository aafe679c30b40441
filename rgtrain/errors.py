"""The error every check of user input raises, how a command tells it, and how names are suggested."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """The user's input cannot be used. The message names what was given, what is allowed and the fix."""


@contextmanager
def exit_on_config_error(*, shown: Callable[[str], str] = str) -> Iterator[None]:
    """Report a ConfigError as every command does: one line on stderr, exit code 2.

    Args:
        shown: What to make of the message, for example without its secrets.
    """
    try:
        yield
    except ConfigError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        sys.exit(2)


def choose_from(given: str, allowed: Iterable[str], *, most: int = 5) -> str:
    """The allowed names nearest to `given` (or the first ones), as the end of an error message.

    >>> choose_from("lenght", ["accuracy", "length"])
    "did you mean 'length'? (choose from: accuracy, length)"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    if len(names) <= 20:
        return f"{hint}(choose from: {', '.join(names)})"
    return f"{hint}({len(names)} names are known, such as {', '.join((near or names)[:most])})"
