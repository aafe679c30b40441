"""Rows made ahead are the rows that would be made when they are asked for."""

import threading

import pytest

from rgtrain.problems.mixture import Choice, DatasetSpec
from rgtrain.training.rows_ahead import RowsAhead


class Curriculum:
    """Chooses the same level for all indices, and makes rows that name their level and the thread that made them."""

    def __init__(self) -> None:
        self.level = 0
        self.made: list[tuple[int, int, bool]] = []
        self.done = threading.Event()
        self.last = 9

    def choose(self, index: int) -> Choice:
        return Choice(DatasetSpec("gcd"), self.level)

    def make(self, index: int, choice: Choice) -> dict:
        self.made.append((index, choice.level, threading.current_thread() is threading.main_thread()))
        if index == self.last:
            self.done.set()
        return {"index": index, "level": choice.level}


@pytest.fixture
def curriculum() -> Curriculum:
    return Curriculum()


@pytest.fixture
def rows(curriculum) -> RowsAhead:
    return RowsAhead(curriculum.choose, curriculum.make)


def test_rows_are_made_once_in_the_background(curriculum, rows):
    rows.start(range(10))
    rows.wait()
    assert [rows.take(index)["index"] for index in range(10)] == list(range(10))
    assert curriculum.made == [(index, 0, False) for index in range(10)]


def test_a_row_is_made_again_if_the_curriculum_chooses_differently_by_then(curriculum, rows):
    rows.start(range(10))
    assert curriculum.done.wait(10)
    curriculum.level = 1
    assert rows.take(3) == {"index": 3, "level": 1}
    assert curriculum.made[-1] == (3, 1, True)


def test_rows_that_are_not_made_yet_are_made_when_they_are_taken(curriculum, rows):
    begun, go_on = threading.Event(), threading.Event()
    make = curriculum.make

    def slow(index: int, choice: Choice) -> dict:
        begun.set()
        go_on.wait(10)
        return make(index, choice)

    rows._make = slow
    rows.start(range(10))
    assert begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    assert [rows.take(index)["index"] for index in range(10)] == list(range(10))
    # Never two threads at once, and each row once.
    assert sorted(index for index, *_ in curriculum.made) == list(range(10))


def test_rows_that_are_not_taken_are_dropped_or_kept_for_the_next_start(curriculum, rows):
    curriculum.last = 3
    rows.start(range(4))
    assert curriculum.done.wait(10)
    curriculum.done.clear()
    curriculum.last = 5
    rows.start(range(2, 6))
    assert curriculum.done.wait(10)
    assert [index for index, *_ in curriculum.made] == [0, 1, 2, 3, 4, 5]
    rows.take(0)
    assert curriculum.made[-1] == (0, 0, True)


def test_an_error_is_raised_when_its_row_is_taken(curriculum, rows):
    def fail(index: int, choice: Choice) -> dict:
        raise ValueError(f"row {index}")

    rows._make = fail
    rows.start(range(2))
    with pytest.raises(ValueError, match="row 0"):
        rows.take(0)
