"""Bar charts of shares with their confidence intervals: sorted, with equal rows folded and a fitted axis."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Fewer equal rows are shown one by one.
_MIN_FOLDED = 4
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
_MAX_TICKS = 6


@dataclass(frozen=True)
class Bar:
    """A bar of a chart.

    Attributes:
        label: The name of the dataset or category, or "overall".
        value: The length of the bar, from -1 to 1.
        interval: The confidence interval of the value.
        text: The value as text.
        is_sum: Whether the bar is of a category or overall. Such bars stand on top, in the given order.
    """

    label: str
    value: float
    interval: tuple[float, float]
    text: str
    is_sum: bool = False


@dataclass(frozen=True)
class BarChart:
    """A chart, ready to be drawn.

    Attributes:
        groups: The bars from top to bottom. A group of several bars with the same value is folded into one row.
        low: The lower end of the axis, at most 0.
        high: The upper end of the axis, at least 0.
        ticks: The places of the grid lines.
    """

    groups: Sequence[Sequence[Bar]]
    low: float
    high: float
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        """Return the place of a value on the axis, in percent from the left."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def bar_chart(bars: Sequence[Bar]) -> BarChart:
    """Return the chart of these bars, sorted from high to low values.

    Args:
        bars: The bars, in any order.
    """
    groups: list[list[Bar]] = [[bar] for bar in bars if bar.is_sum]
    others = sorted((bar for bar in bars if not bar.is_sum), key=lambda bar: (-bar.value, bar.label))
    for _, equal in itertools.groupby(others, key=lambda bar: bar.text):
        found = list(equal)
        groups += [found] if len(found) >= _MIN_FOLDED else [[bar] for bar in found]
    ends = [0.0, *(end for bar in bars for end in (bar.value, *bar.interval))]
    lowest, highest = min(ends), max(ends)
    # Without any range, for example if all values are 0, the axis shows one step.
    step = next((step for step in _STEPS if (highest - lowest) / step <= _MAX_TICKS), _STEPS[-1])
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    return BarChart(groups, first * step, last * step, [number * step for number in range(first, last + 1)])
