"""Plain text tables for terminals and log files."""

import re
import unicodedata
from collections.abc import Sequence

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
