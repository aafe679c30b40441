"""The error that checks of user input raise, and helpers to report it and to suggest names."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """The user's input cannot be used. The message names the given value, the allowed values and the fix."""


@contextmanager
def exit_on_config_error(*, transform: Callable[[str], str] = str) -> Iterator[None]:
    """Report a ConfigError in one line on stderr and exit with code 2.

    Args:
        transform: Applied to the message before it is printed, for example to mask secrets.
    """
    try:
        yield
    except ConfigError as error:
        print(f"error: {transform(str(error))}", file=sys.stderr)
        sys.exit(2)


def choose_from(given: str, allowed: Iterable[str], *, max_names: int = 5) -> str:
    """Return the end of an error message that suggests the allowed names closest to `given`.

    Args:
        given: The unknown name.
        allowed: All allowed names.
        max_names: Number of names to list if there are more than 20.

    Returns:
        A suggestion, if a name is close, and the allowed names.

    >>> choose_from("lenght", ["accuracy", "length"])
    "did you mean 'length'? (choose from: accuracy, length)"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    if len(names) <= 20:
        return f"{hint}(choose from: {', '.join(names)})"
    return f"{hint}({len(names)} names are known, such as {', '.join((near or names)[:max_names])})"
