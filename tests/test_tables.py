"""Tables and numbers for terminals, safe against escape sequences in text of a model."""

import io
import re

import pytest
from rich.cells import cell_len

from rgtrain.tables import distinct_of, percent, printable, printed_table, text_table


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


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


HEADER = ["dataset", "right %", "errors"]
ROWS = [["gcd", "37.5 (10.0 to 60.0)", "0"], ["spell_backward", "7.5 (1.0 to 30.0)", "refused 3, timeout 12"]]


def at_terminal(monkeypatch, header, rows, *, columns: int = 80, **environment: str) -> str:
    for name, value in {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": str(columns), **environment}.items():
        monkeypatch.setenv(name, value)
    return printed_table(header, rows, file=Terminal())


def without_codes(table: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", table)


def test_a_table_in_a_pipe_is_plain(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert printed_table(HEADER, ROWS, file=io.StringIO()) == text_table(HEADER, ROWS)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}, {"encoding": "latin-1"}])
def test_a_terminal_without_codes_or_wide_characters_gets_a_plain_table(monkeypatch, environment):
    monkeypatch.setattr(Terminal, "encoding", environment.pop("encoding", "utf-8"))
    assert at_terminal(monkeypatch, HEADER, ROWS, **environment) == text_table(HEADER, ROWS)


def test_the_header_is_coloured_unless_no_color_is_set(monkeypatch):
    coloured = at_terminal(monkeypatch, HEADER, ROWS)
    plain = at_terminal(monkeypatch, HEADER, ROWS, NO_COLOR="1")
    assert "\x1b[1;36mdataset" in coloured and "\x1b" not in coloured.splitlines()[2].partition("gcd")[0]
    assert "\x1b" not in plain
    assert [line.rstrip() for line in without_codes(coloured).splitlines()] == plain.splitlines()


@pytest.mark.parametrize("columns", [*range(30, 61, 5), 200])
def test_a_table_is_never_wider_than_the_terminal_and_breaks_no_word(monkeypatch, columns):
    lines = without_codes(at_terminal(monkeypatch, HEADER, ROWS, columns=columns)).splitlines()
    assert max(map(cell_len, lines)) <= columns
    words = {word for row in (HEADER, *ROWS) for cell in row for word in cell.split()}
    assert words <= set(" ".join(lines).split())


def test_a_table_that_does_not_fit_becomes_labelled_lines(monkeypatch):
    assert at_terminal(monkeypatch, HEADER, ROWS, columns=25).splitlines() == [
        "dataset  gcd",
        "right %  37.5 (10.0 to 60.0)",
        "errors   0",
        "",
        "dataset  spell_backward",
        "right %  7.5 (1.0 to 30.0)",
        "errors   refused 3, timeout 12",
    ]
    assert at_terminal(monkeypatch, HEADER, [], columns=5) == "dataset  right %  errors"


@pytest.mark.parametrize(
    "text", ["[bold]x[/bold]", "[/]", "[/red]", "[link=file:///etc]y[/link]", ":smile:", "\\[b]", "[", "x[0]", "@click"]
)
def test_names_are_never_markup(monkeypatch, text):
    table = at_terminal(monkeypatch, [text, "n"], [[text, "1"]])
    assert without_codes(table).splitlines()[2].split() == [text, "1"]
    assert without_codes(table).splitlines()[0].split() == [text, "n"]
    assert without_codes(table) == at_terminal(monkeypatch, [text, "n"], [[text, "1"]], NO_COLOR="1")


def test_text_of_a_model_has_no_codes_at_a_terminal(monkeypatch):
    table = at_terminal(monkeypatch, ["name"], [["\x1b[31mred\x1b[0m \x1b]8;;file:///etc\x07link\x1b]8;;\x07"]])
    assert table.splitlines()[2] == "red link"


def test_wide_characters_and_emoji_take_two_columns(monkeypatch):
    lines = at_terminal(
        monkeypatch, ["name", "n"], [["数学", "1"], ["😀", "2"], ["abcd", "3"]], NO_COLOR="1"
    ).splitlines()
    assert lines[2:] == ["数学  1", "😀    2", "abcd  3"]


def test_a_terminal_without_a_known_width_has_80_columns(monkeypatch):
    assert (
        at_terminal(monkeypatch, ["name"], [["word " * 40]], COLUMNS="wide", NO_COLOR="1").splitlines()[1]
        == "\u2500" * 80
    )
