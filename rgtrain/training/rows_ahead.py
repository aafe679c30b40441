"""Make the rows of the next batch in a background thread while the present batch is generated."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

_Choice = TypeVar("_Choice")


class RowsAhead(Generic[_Choice]):
    """Rows of coming indices, made before they are asked for.

    A row depends only on its index and on a choice, such as that of its dataset and level. A curriculum may choose
    differently once it has seen the present batch. Such a row is made again, so rows are the same as without this
    class.

    Args:
        choose: Chooses for an index by the present state of the run.
        make: Makes the row of an index.
    """

    def __init__(self, choose: Callable[[int], _Choice], make: Callable[[int, _Choice], dict[str, Any]]):
        self._choose = choose
        self._make = make
        self._rows: dict[int, tuple[_Choice, dict[str, Any]]] = {}
        self._is_wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, indices: Iterable[int]) -> None:
        """Begin to make rows, and return at once. Rows of other indices are dropped."""
        self._stop()
        coming = list(indices)
        self._rows = {index: self._rows[index] for index in coming if index in self._rows}
        missing = [(index, self._choose(index)) for index in coming if index not in self._rows]
        self._is_wanted.clear()
        self._thread = threading.Thread(target=self._make_all, args=(missing,), daemon=True, name="rows ahead")
        self._thread.start()

    def _make_all(self, choices: list[tuple[int, _Choice]]) -> None:
        for index, choice in choices:
            if self._is_wanted.is_set():
                return
            try:
                self._rows[index] = choice, self._make(index, choice)
            except Exception:
                # The error is raised again when the row is taken.
                return

    def take(self, index: int) -> dict[str, Any]:
        """Return the row of an index, and make it if necessary."""
        self._stop()
        choice = self._choose(index)
        made = self._rows.pop(index, None)
        return made[1] if made is not None and made[0] == choice else self._make(index, choice)

    def wait(self) -> None:
        """Wait until all rows are made."""
        if self._thread is not None:
            self._thread.join()

    def _stop(self) -> None:
        # Problems are made by one thread at a time, because some generators use global random numbers.
        if self._thread is not None:
            self._is_wanted.set()
            self._thread.join()
            self._thread = None
