"""Show comparisons as tables for a terminal and in Markdown."""

from collections.abc import Sequence

from rgtrain.reporting.comparison import Comparison, Row
from rgtrain.tables import distinct_of, percent, printable, printed_table

LEGEND = (
    "Points are the second accuracy minus the first, in percentage points. Every answer counts equally. The interval "
    "of the points is a bootstrap over distinct questions with all their answers. Won and lost count the questions "
    "that are solved more often or less often. p is the p-value of the points if the two models were exchangeable at "
    "each question, with Holm's correction over all rows of a kind (* means below 0.05)."
)
_SIGNIFICANT = 0.05
_MAX_TITLE = 24


def as_text(comparisons: Sequence[Comparison]) -> str:
    """Return a table for each comparison, for a terminal."""
    tables = [
        "\n\n".join(
            [_title(comparison), printed_table(_shortened(header(comparison)), rows(comparison)), *notes(comparison)]
        )
        for comparison in comparisons
    ]
    return "\n\n".join([*tables, LEGEND])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return a table for each comparison, in GitHub's Markdown."""
    tables = []
    for comparison in comparisons:
        titles = _shortened(header(comparison))
        lines = [titles, ("---", *["---:"] * (len(titles) - 1)), *rows(comparison)]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        tables.append("\n\n".join([f"## {_escaped(_title(comparison))}", table, *notes(comparison)]))
    return "\n\n".join([*tables, _escaped(LEGEND)]) + "\n"


def header(comparison: Comparison) -> tuple[str, ...]:
    """Return the headings of the columns."""
    first, second = comparison.labels
    return ("dataset", "problems", f"{first} %", f"{second} %", "points", "95 % interval", "won", "lost", "p")


def _shortened(titles: Sequence[str]) -> tuple[str, ...]:
    # The ends of names differ.
    return tuple(title if len(title) <= _MAX_TITLE else f"…{title[1 - _MAX_TITLE :]}" for title in titles)


def _title(comparison: Comparison) -> str:
    names = zip((comparison.before, comparison.after), comparison.labels, strict=True)
    return printable(" and ".join(f"{name} ({label})" if label != name else name for name, label in names))


def notes(comparison: Comparison) -> list[str]:
    """Return a sentence on questions that are left out, if there are any."""
    number = comparison.num_unpaired
    named = "1 question is" if number == 1 else f"{number} questions are"
    return [f"{named} left out because only one of the models answered."] if number else []


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the cells of each row: datasets, categories, overall, pass@k and majority@k."""
    compared = [*comparison.datasets, *comparison.categories, comparison.overall, *comparison.at_k]
    return [_cells(row) for row in compared]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        distinct_of(row.num_problems, num_distinct=row.num_questions),
        percent(row.before, row.before_interval),
        percent(row.after, row.after_interval),
        f"{100 * row.difference:+.1f}",
        f"{100 * row.interval[0]:+.1f} to {100 * row.interval[1]:+.1f}",
        str(row.num_won),
        str(row.num_lost),
        _p_value(row.adjusted_p_value),
    )


def _p_value(p_value: float) -> str:
    shown = f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"
    return f"{shown}*" if p_value < _SIGNIFICANT else shown


def _escaped(cell: str) -> str:
    return printable(cell).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
