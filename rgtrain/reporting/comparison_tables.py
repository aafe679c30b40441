"""Show comparisons as tables for a terminal, in Markdown, and in HTML."""

from collections.abc import Sequence

from rgtrain.reporting.comparison import Comparison, Row
from rgtrain.reporting.rendering import render
from rgtrain.tables import percent, printable, text_table

HEADER = ("dataset", "problems", "before %", "after %", "points", "95 % interval", "won", "lost", "p")
LEGEND = (
    "Points are the accuracy after minus before, in percentage points, with the bootstrap interval of the differences "
    "paired by problem. Won and lost count the problems that are solved more often or less often. p is the p-value of "
    "the sign test on won and lost, with Holm's correction over all datasets (* means below 0.05)."
)
_SIGNIFICANT = 0.05


def as_text(comparisons: Sequence[Comparison]) -> str:
    """Return a table for each comparison, for a terminal."""
    tables = [f"{_title(comparison)}\n\n{text_table(HEADER, _rows(comparison))}" for comparison in comparisons]
    return "\n\n".join([*tables, LEGEND])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return a table for each comparison, in GitHub's Markdown."""
    tables = []
    for comparison in comparisons:
        lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *_rows(comparison)]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        tables.append(f"## {_escaped(_title(comparison))}\n\n{table}")
    return "\n\n".join([*tables, _escaped(LEGEND)]) + "\n"


def as_html(comparisons: Sequence[Comparison]) -> str:
    """Return a self-contained page with a table and a chart of the differences for each comparison."""
    return render("comparison.html.j2", comparisons=comparisons, header=HEADER, legend=LEGEND, cells_of=_cells)


def _title(comparison: Comparison) -> str:
    return printable(f"{comparison.before} (before) and {comparison.after} (after)")


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [_cells(row) for row in [*comparison.datasets, comparison.overall]]


def _cells(row: Row) -> tuple[str, ...]:
    interval = "-" if row.interval is None else f"{100 * row.interval[0]:+.1f} to {100 * row.interval[1]:+.1f}"
    return (
        row.name,
        str(row.num_problems),
        percent(row.before, row.before_error),
        percent(row.after, row.after_error),
        f"{100 * row.difference:+.1f}",
        interval,
        str(row.num_won),
        str(row.num_lost),
        _p_value(row.adjusted_p_value),
    )


def _p_value(p_value: float) -> str:
    shown = f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"
    return f"{shown}*" if p_value < _SIGNIFICANT else shown


def _escaped(cell: str) -> str:
    return printable(cell).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
