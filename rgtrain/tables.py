"""Tables for terminals, log files and pipes. Text of a model and names in them are never taken for markup or codes."""

import io
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

# Match whole CSI and OSC sequences, because their tails ("[31m") are printable. The quantifiers are possessive so that
# a model's text cannot cause backtracking.
_ESCAPE_SEQUENCES = re.compile(r"\x1b\[[0-?]*+[ -/]*+[@-~]|\x1b\][^\x07\x1b]*+(?:\x07|\x1b\\)?|\x1b.?")


def printable(text: str) -> str:
    r"""Return `text` on one line without escape sequences and control characters.

    >>> printable("\x1b[31mred\x1b[0m\nnext")
    'red next'
    """
    text = " ".join(_ESCAPE_SEQUENCES.sub("", text).split())
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """Return a plain text table with a rule under the header.

    Args:
        header: Column headings.
        rows: Cells of each row, as many as there are headings.
        num_left: Number of leading columns that are left-aligned; the others are right-aligned.

    Returns:
        The lines of the table, joined by newlines.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def printed_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1, file: TextIO | None = None
) -> str:
    """Return a table in the form in which a command prints it.

    On a terminal, the table fits its width: cells that are too long continue on further lines, between words. If even
    single words don't fit beside each other, every row becomes a block of lines with a label each. The header is
    coloured unless the environment variable NO_COLOR has a value. In log files and pipes, the table is a `text_table`.

    Args:
        header: Column headings.
        rows: Cells of each row, as many as there are headings.
        num_left: Number of leading columns that are left-aligned; the others are right-aligned.
        file: The stream that the table is printed to; None for standard output.

    Returns:
        The lines of the table, joined by newlines.
    """
    file = sys.stdout if file is None else file
    width = _terminal_width(file)
    if width is None:
        return text_table(header, rows, num_left=num_left)
    # Loaded here, because most commands print to no terminal or no table.
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    longest_words = [max(cell_len(word) for cell in column for word in cell.split(" ")) for column in columns]
    # Two spaces separate columns. rich itself would narrow columns further and break words.
    too_wide = sum(widths) + 2 * (len(columns) - 1) - width
    for _ in range(too_wide):
        widest = max(range(len(columns)), key=lambda column: (widths[column] > longest_words[column], widths[column]))
        if widths[widest] <= longest_words[widest]:
            return _stacked(cells)
        widths[widest] -= 1
    table = Table(
        box=SIMPLE_HEAD,
        header_style="bold cyan",
        border_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column, heading in enumerate(cells[0]):
        # A Text is shown as it is, while a str would be read as rich's markup.
        table.add_column(
            Text(heading),
            justify="left" if column < num_left else "right",
            overflow="fold",
            width=widths[column],
        )
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    rendered = io.StringIO()
    Console(
        file=rendered,
        width=width,
        force_terminal=True,
        color_system=None if os.environ.get("NO_COLOR") else "standard",
        legacy_windows=False,
    ).print(table)
    return "\n".join(line.rstrip() for line in rendered.getvalue().rstrip("\n").split("\n"))


def _terminal_width(file: TextIO) -> int | None:
    """Return the number of columns of a terminal; None if `file` is none, or can't show lines and wide characters."""
    if (
        not file.isatty()
        or os.environ.get("TERM") in ("dumb", "unknown")
        or not (file.encoding or "").lower().startswith("utf")
    ):
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns):
        return int(columns)
    try:
        # Some terminals report no width.
        return os.get_terminal_size(file.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _stacked(cells: Sequence[Sequence[str]]) -> str:
    """Return a block of labelled lines for each row after the first, which has the labels."""
    header, *rows = cells
    blocks = ["\n".join(labelled_lines(list(zip(header, row, strict=True)))) for row in rows]
    return "\n\n".join(blocks or ["  ".join(header)])


def labelled_lines(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return one line per value, with the values aligned after their labels.

    >>> labelled_lines([("model", "Qwen"), ("learning rate", "1e-06")])
    ['model          Qwen', 'learning rate  1e-06']
    """
    width = max((len(label) for label, _ in rows), default=0)
    return [f"{label.ljust(width)}  {printable(value)}" for label, value in rows]


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """Return a share in [0, 1] as a percentage, with its confidence interval if one is given; "-" for None.

    >>> percent(0.0, (0.0, 0.434))
    '0.0 (0.0 to 43.4)'
    """
    if share is None:
        return "-"
    if interval is None:
        return f"{100 * share:.1f}"
    low, high = interval
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def distinct_of(number: int, *, num_distinct: int) -> str:
    """Return a number of things, with the number of distinct ones if some are equal.

    >>> distinct_of(100, num_distinct=98)
    '100 (98 distinct)'
    """
    return str(number) if number == num_distinct else f"{number} ({num_distinct} distinct)"


def duration_text(seconds: float) -> str:
    """Return a duration with about two digits.

    >>> [duration_text(seconds) for seconds in (0.67, 13.4, 200, 13000, 1e6)]
    ['0.67 s', '13 s', '3 min', '3.6 h', '12 days']
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
