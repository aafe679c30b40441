"""Tables and numbers for terminals, safe against escape sequences in text of a model."""

import pytest

from rgtrain.tables import distinct_of, percent, printable, text_table


def test_names_are_left_aligned_and_numbers_right_aligned():
    table = text_table(["dataset", "n"], [["gcd", "5"], ["spell_backward", "1234"]])
    assert table.splitlines() == [
        "dataset            n",
        "--------------  ----",
        "gcd                5",
        "spell_backward  1234",
    ]


def test_several_columns_can_be_left_aligned():
    table = text_table(["dataset", "error", "n"], [["gcd", "none", "5"], ["gcd", "timeout", "12"]], num_left=2)
    assert table.splitlines()[2:] == ["gcd      none      5", "gcd      timeout  12"]


def test_a_table_without_rows_has_only_its_header():
    assert text_table(["dataset", "n"], []) == "dataset  n\n-------  -"


def test_lines_have_no_trailing_spaces():
    table = text_table(["dataset", "note"], [["gcd", ""]], num_left=2)
    assert all(line == line.rstrip() for line in table.splitlines())


def test_a_row_of_a_different_length_is_an_error():
    with pytest.raises(ValueError):
        text_table(["dataset", "n"], [["gcd", "1", "2"]])


def test_a_cell_is_always_one_line():
    table = text_table(["name"], [["two\nlines\r\x1b[2Jand more"]])
    assert table.splitlines()[2:] == ["two lines and more"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x1b[38;5;1mred\x1b[0m", "red"),
        ("half a sequence \x1b[", "half a sequence"),
        ("a\u202eb\u200bc\x00d", "abcd"),
        ("\ud800x", "x"),
        ("Größe 数学", "Größe 数学"),
    ],
)
def test_printable_removes_only_escape_sequences_and_control_characters(text, shown):
    assert printable(text) == shown


def test_a_share_is_a_percentage_with_its_interval():
    assert (percent(0.125), percent(None)) == ("12.5", "-")
    assert (percent(0, (0, 0.4344)), percent(1, [0.5656, 1])) == ("0.0 (0.0 to 43.4)", "100.0 (56.6 to 100.0)")


def test_a_number_names_the_distinct_things_only_if_some_are_equal():
    assert distinct_of(100, num_distinct=100) == "100"
    assert distinct_of(100, num_distinct=34) == "100 (34 distinct)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("a\r\nb\tc\x07\x9b2J", "a b c2J"),
        ("right\u202eto left", "rightto left"),
    ],
)
def test_a_table_contains_no_escape_sequences(text, shown):
    assert printable(text) == shown
    assert shown in text_table(["name"], [[text]])
