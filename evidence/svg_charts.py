"""Figures as SVG, drawn for light pages, dark pages and print.

Each figure has its own background, and its colors follow the reader's color scheme. Series differ in color and in the
shape of their marks, so they differ in print without color, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 960
# Light and dark colors of series. Both have a contrast of at least 3 with their background.
_COLORS = [
    ("#1d4ed8", "#7aa7ff"),
    ("#c2410c", "#fb9a5b"),
    ("#047857", "#4fd1a1"),
    ("#9d174d", "#f48cbb"),
    ("#525252", "#b8b8b8"),
    ("#6d28d9", "#b99bff"),
    ("#0e7490", "#5cd0e6"),
]
_STYLE = "\n".join(
    [
        "svg{color-scheme:light dark}",
        ".paper{fill:#fff}.ink{fill:#1a1a1a}.soft{fill:#555}.grid{stroke:#ddd}.axis{stroke:#666}",
        ".gain{fill:#2563eb}.loss{fill:#ea580c}",
        *(f".s{i}{{fill:{light};stroke:{light}}}" for i, (light, _) in enumerate(_COLORS)),
        "@media screen and (prefers-color-scheme:dark){",
        ".paper{fill:#15181d}.ink{fill:#eee}.soft{fill:#aaa}.grid{stroke:#363b44}.axis{stroke:#888}",
        *(f".s{i}{{fill:{dark};stroke:{dark}}}" for i, (_, dark) in enumerate(_COLORS)),
        "}",
    ]
)
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval, as shares. They are drawn in percent or percentage points."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Forest:
    """A panel of estimates on a common horizontal axis.

    Attributes:
        title: The title.
        rows: The estimate of each series by its number, in each labelled row from top to bottom.
    """

    title: str
    rows: Sequence[tuple[str, dict[int, Estimate]]]


@dataclass(frozen=True)
class HeatMap:
    """A matrix of estimates.

    Attributes:
        title: The title.
        rows: The labels of the rows.
        columns: The labels of the columns.
        values: The value of each cell in [-1, 1], or None.
        is_marked: Whether the value of a cell is printed in bold, with a star.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    is_marked: Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Curves:
    """A panel of curves over named places.

    Attributes:
        title: The title.
        places: The labels of the horizontal axis.
        curves: The estimate of each series by its number, at each place.
        ends_with_total: Whether the last place summarizes the others. No line leads to it.
        trainings: The values of the trainings behind each series' last estimate, by the number of the series.
    """

    title: str
    places: Sequence[str]
    curves: dict[int, Sequence[Estimate]]
    ends_with_total: bool = False
    trainings: Mapping[int, Sequence[float]] = field(default_factory=dict)


def forest_figure(panels: Sequence[Forest], *, series: Sequence[str], axis: str, description: str) -> str:
    """Return a figure of panels side by side, which have the same rows and the same axis.

    Args:
        panels: At least one panel.
        series: The names of the series.
        axis: The label of the axis.
        description: The text for readers who can't see the figure.

    Returns:
        The SVG.
    """
    labels = [label for label, _ in panels[0].rows]
    left, top, gap = 130, 84, 14
    width = (WIDTH - left - 16) / len(panels) - gap
    row_height = 11 * len(series) + 12
    bottom = top + row_height * len(labels)
    estimates = [estimate for panel in panels for _, row in panel.rows for estimate in row.values()]
    low, high, ticks = _axis([end for each in estimates for end in (each.low, each.high)], most=5)
    parts = [_legend(series, y=24)]
    for number, label in enumerate(labels):
        middle = top + row_height * (number + 0.5)
        parts += _label(label, x=left - 10, y=middle, anchor="end")
        if number:
            parts.append(_line(left, middle - row_height / 2, WIDTH - 16, middle - row_height / 2, "grid", dash="2 3"))
    for position, panel in enumerate(panels):
        start = left + position * (width + gap)

        def place(value: float, start: float = start) -> float:
            return start + 4 + (value - low) / (high - low) * (width - 8)

        parts += _label(panel.title, x=start + width / 2, y=top - 22, anchor="middle", weight=600)
        for tick in ticks:
            is_zero = abs(tick) < 1e-9
            parts.append(_line(place(tick), top, place(tick), bottom, "axis" if is_zero else "grid"))
            parts.append(_text(_signed(tick), place(tick), bottom + 16, "soft", anchor="middle"))
        for number, (_, row) in enumerate(panel.rows):
            for index, estimate in row.items():
                y = top + row_height * number + 11.5 + 11 * index
                parts.append(_line(place(estimate.low), y, place(estimate.high), y, f"s{index}", width=1.6))
                parts.append(_mark(index, place(estimate.value), y))
    parts.append(_text(axis, (left + WIDTH) / 2, bottom + 38, "soft", anchor="middle"))
    return _svg(parts, height=bottom + 52, description=description)


def heat_map_figure(panels: Sequence[HeatMap], *, axis: tuple[str, str], description: str) -> str:
    """Return a figure of matrices, two beside each other. Color shows size and sign, and each cell has its number.

    Args:
        panels: At least one matrix.
        axis: The labels of the rows and of the columns.
        description: The text for readers who can't see the figure.

    Returns:
        The SVG.
    """
    cells = [abs(value) for panel in panels for row in panel.values for value in row if value is not None]
    strongest = max([0.05, *cells])
    across = min(2, len(panels))
    width = WIDTH / across
    num_rows, num_columns = len(panels[0].rows), len(panels[0].columns)
    left, cell_height, head = 128, 36, 88
    cell_width = min(104.0, (width - left - 16) / num_columns)
    height = head + cell_height * num_rows + 26
    parts = []
    for position, panel in enumerate(panels):
        x0, y0 = position % across * width + left, position // across * height + head
        parts.append(_text(panel.title, x0 - left + 16, y0 - 62, weight=600, size=13))
        parts.append(_text(axis[1], x0 + cell_width * num_columns / 2, y0 - 44, "soft", anchor="middle"))
        parts.append(_text(axis[0], x0 - 10, y0 - 8, "soft", anchor="end"))
        for column, label in enumerate(panel.columns):
            parts += _label(label, x=x0 + cell_width * (column + 0.5), y=y0 - 18, anchor="middle", size=11)
        for row, label in enumerate(panel.rows):
            y = y0 + cell_height * row
            parts += _label(label, x=x0 - 10, y=y + cell_height / 2, anchor="end")
            for column, value in enumerate(panel.values[row]):
                x = x0 + cell_width * column
                shade = 0.0 if value is None else 0.62 * abs(value) / strongest
                kind = "gain" if value is None or value > 0 else "loss"
                parts.append(
                    f'<rect class="{kind}" fill-opacity="{shade:.3f}" x="{x + 1:.1f}" y="{y + 1:.1f}"'
                    f' width="{cell_width - 2:.1f}" height="{cell_height - 2}" rx="3"/>'
                )
                is_marked = panel.is_marked[row][column]
                text = "-" if value is None else _signed(value, digits=1) + ("*" if is_marked else "")
                weight = 700 if is_marked else 400
                parts.append(_text(text, x + cell_width / 2, y + cell_height / 2 + 4, weight=weight, anchor="middle"))
            # Trained and evaluated category are the same.
            if row < num_columns and panel.rows[row] == panel.columns[row]:
                parts.append(
                    f'<rect class="axis" fill="none" stroke-width="1.5" x="{x0 + cell_width * row + 1:.1f}"'
                    f' y="{y + 1:.1f}" width="{cell_width - 2:.1f}" height="{cell_height - 2}" rx="3"/>'
                )
    total = height * -(-len(panels) // across)
    return _svg(parts, height=total, description=description)


def curves_figure(panels: Sequence[Curves], *, series: Sequence[str], axis: str, description: str) -> str:
    """Return a figure of panels with curves, two or three beside each other. Each panel has its own vertical axis.

    Args:
        panels: At least one panel.
        series: The names of the series.
        axis: The label of the horizontal axis.
        description: The text for readers who can't see the figure.

    Returns:
        The SVG.
    """
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    width, left, right = WIDTH / across, 52, 18
    head, plot, foot = 34, 190, 46
    parts = [_legend(series, y=24)]
    for position, panel in enumerate(panels):
        x0, y0 = position % across * width + left, 44 + position // across * (head + plot + foot) + head
        span = width - left - right
        ends = [end for curve in panel.curves.values() for each in curve for end in (each.low, each.high)]
        ends += [value for values in panel.trainings.values() for value in values]
        low, high, ticks = _axis(ends, most=5)
        parts.append(_text(panel.title, x0, y0 - 12, weight=600, size=13))

        def across_place(number: int, x0: float = x0, span: float = span, count: int = len(panel.places)) -> float:
            return x0 + 8 + (span - 16) * (number / max(1, count - 1))

        def up_place(value: float, y0: float = y0, low: float = low, high: float = high) -> float:
            return y0 + plot * (high - value) / (high - low)

        for tick in ticks:
            kind = "axis" if abs(tick) < 1e-9 else "grid"
            parts.append(_line(x0, up_place(tick), x0 + span, up_place(tick), kind))
            parts.append(_text(f"{100 * tick:.3g}", x0 - 6, up_place(tick) + 4, "soft", anchor="end"))
        for number, label in enumerate(panel.places):
            parts.append(_text(label, across_place(number), y0 + plot + 16, "soft", anchor="middle"))
        parts.append(_text(axis, x0 + span / 2, y0 + plot + 33, "soft", anchor="middle"))
        num_curves = len(panel.curves)
        for order, (index, curve) in enumerate(panel.curves.items()):
            # Curves stand beside each other, so that their intervals don't overlap.
            shift = (order - (num_curves - 1) / 2) * min(4.0, 24 / num_curves)
            points = [(across_place(number) + shift, up_place(each.value)) for number, each in enumerate(curve)]
            if panel.trainings:
                # Rings need more room.
                points[-1] = (points[-1][0] + shift, points[-1][1])
            joined = points[:-1] if panel.ends_with_total else points
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in joined)
            parts.append(f'<polyline class="s{index}" style="fill:none" stroke-width="1.8" points="{path}"/>')
            for (x, y), each in zip(points, curve, strict=True):
                parts.append(_line(x, up_place(each.low), x, up_place(each.high), f"s{index}", width=1.2))
                parts.append(_mark(index, x, y))
            parts += [_ring(index, points[-1][0], up_place(value)) for value in panel.trainings.get(index, ())]
    height = 44 + (head + plot + foot) * -(-len(panels) // across)
    return _svg(parts, height=height, description=description)


def _svg(parts: Sequence[str], *, height: float, description: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
        f' height="{height:.0f}" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
        f' role="img">\n<title>{escape(description)}</title>\n<style>{_STYLE}</style>\n'
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _axis(ends: Sequence[float], *, most: int) -> tuple[float, float, list[float]]:
    """Return the ends of an axis that has 0 and all `ends`, and the places of at most `most` + 2 ticks."""
    lowest, highest = min([0.0, *ends]), max([0.0, *ends])
    step = next((step for step in _STEPS if (highest - lowest) / step <= most), _STEPS[-1])
    first, last = (int(-(-lowest // step)), int(highest // step))
    ticks = [number * step for number in range(first, max(last, first + 1) + 1)]
    return min(lowest, ticks[0]), max(highest, ticks[-1]), ticks


def _signed(value: float, *, digits: int = 0) -> str:
    points = round(100 * value, digits)
    return f"{points:+.{digits}f}" if points else "0"


def _text(
    text: str, x: float, y: float, kind: str = "ink", *, anchor: str = "start", weight: int = 400, size: float = 12
) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )


def _label(text: str, *, x: float, y: float, anchor: str, size: float = 12, weight: int = 400) -> list[str]:
    """Return a label that is centered at `y`, with up to two lines."""
    words = text.split()
    if len(text) <= 14 or len(words) == 1:
        return [_text(text, x, y + 4, anchor=anchor, size=size, weight=weight)]
    cut = min(range(1, len(words)), key=lambda cut: abs(len(" ".join(words[:cut])) - len(" ".join(words[cut:]))))
    lines = (" ".join(words[:cut]), " ".join(words[cut:]))
    return [
        _text(line, x, y + 4 + offset, anchor=anchor, size=size, weight=weight)
        for line, offset in zip(lines, (-7, 7), strict=True)
    ]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, *, width: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"{dashed}/>'
    )


def _polygon(*points: tuple[float, float]) -> Callable[[float, float], str]:
    def at(x: float, y: float) -> str:
        return f'<path d="M{" L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in points)}Z"'

    return at


# The shape of each series' marks.
_SHAPES: list[Callable[[float, float], str]] = [
    lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
    _polygon((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
    _polygon((0, -4.8), (4.4, 3.4), (-4.4, 3.4)),
    _polygon((0, -5), (5, 0), (0, 5), (-5, 0)),
    lambda x, y: f'<circle style="fill:none" stroke-width="1.8" cx="{x:.1f}" cy="{y:.1f}" r="3.4"',
    _polygon((0, 4.8), (4.4, -3.4), (-4.4, -3.4)),
    _polygon((-1.6, -5), (1.6, -5), (1.6, 5), (-1.6, 5)),
]


def _mark(index: int, x: float, y: float) -> str:
    return f'{_SHAPES[index](x, y)} class="s{index}"/>'


def _ring(index: int, x: float, y: float) -> str:
    """Return a small ring with a filled middle."""
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="2.2"'
    return f'<circle class="paper" {place}/><circle class="s{index}" style="fill:none" {place}/>'


def _legend(series: Sequence[str], *, y: float) -> str:
    """Return a legend. Raises ValueError if there are more series than colors and shapes."""
    if len(series) > len(_SHAPES):
        raise ValueError(f"{len(series)} series, but {len(_SHAPES)} colors and shapes; add to _COLORS and _SHAPES")
    parts, x = [], 24.0
    for index, name in enumerate(series):
        parts += [_mark(index, x, y - 4), _text(name, x + 12, y)]
        x += 34 + 6.6 * len(name)
    return "\n".join(parts)
