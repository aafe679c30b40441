"""Show comparisons as tables for a terminal, in Markdown, and in HTML."""

from collections.abc import Sequence

from rgtrain.reporting.comparison import Comparison, Row
from rgtrain.reporting.rendering import render
from rgtrain.tables import distinct_of, percent, printable, text_table

HEADER = ("dataset", "problems", "before %", "after %", "points", "95 % interval", "won", "lost", "p")
LEGEND = (
    "Points are the accuracy after minus before, in percentage points. Every answer counts equally. The interval of "
    "the points is a bootstrap over distinct questions with all their answers. Won and lost count the questions that "
    "are solved more often or less often. p is the p-value of the points if the two models were exchangeable at each "
    "question, with Holm's correction over all rows of a kind (* means below 0.05)."
)
_SIGNIFICANT = 0.05


def as_text(comparisons: Sequence[Comparison]) -> str:
    """Return a table for each comparison, for a terminal."""
    tables = [
        "\n\n".join([_title(comparison), text_table(HEADER, _rows(comparison)), *_notes(comparison)])
        for comparison in comparisons
    ]
    return "\n\n".join([*tables, LEGEND])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return a table for each comparison, in GitHub's Markdown."""
    tables = []
    for comparison in comparisons:
        lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *_rows(comparison)]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        tables.append("\n\n".join([f"## {_escaped(_title(comparison))}", table, *_notes(comparison)]))
    return "\n\n".join([*tables, _escaped(LEGEND)]) + "\n"


def as_html(comparisons: Sequence[Comparison]) -> str:
    """Return a self-contained page with a table and a chart of the differences for each comparison."""
    return render(
        "comparison.html.j2", comparisons=comparisons, header=HEADER, legend=LEGEND, rows_of=_rows, notes_of=_notes
    )


def _title(comparison: Comparison) -> str:
    return printable(f"{comparison.before} (before) and {comparison.after} (after)")


def _notes(comparison: Comparison) -> list[str]:
    """Return a sentence on questions that are left out, if there are any."""
    number = comparison.num_unpaired
    named = "1 question is" if number == 1 else f"{number} questions are"
    return [f"{named} left out because only one of the models answered."] if number else []


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    rows = [*comparison.datasets, *comparison.categories, comparison.overall, *comparison.at_k]
    return [_cells(row) for row in rows]


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
