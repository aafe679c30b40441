"""Bar charts are sorted and folded, and their axes fit the values."""

import pytest

from rgtrain.reporting.bar_charts import Bar, bar_chart


def bar(label, value, low=None, high=None, *, is_sum=False):
    interval = (value if low is None else low, value if high is None else high)
    return Bar(label, value, interval, f"{100 * value:.1f}", is_sum)


def test_bars_are_sorted_below_the_sums_and_equal_ones_are_folded():
    zeros = [bar(name, 0) for name in "dabc"]
    chart = bar_chart([bar("low", 0.1), *zeros, bar("all", 0.05, is_sum=True), bar("high", 0.5), bar("top", 0.5)])
    assert [[one.label for one in group] for group in chart.groups] == [["all"], ["high"], ["top"], ["low"], [*"abcd"]]


@pytest.mark.parametrize(
    ("bars", "low", "high"),
    [
        ([bar("a", 0.03, 0.01, 0.06)], 0, 0.06),
        ([bar("a", 1, 0.8, 1)], 0, 1),
        ([bar("a", 0)], 0, 0.01),
        ([], 0, 0.01),
        ([bar("a", -0.12, -0.2, 0.04)], -0.2, 0.05),
        ([bar("a", -1, -1, 1)], -1, 1),
    ],
)
def test_the_axis_fits_the_values(bars, low, high):
    chart = bar_chart(bars)
    assert (chart.low, chart.high) == pytest.approx((low, high))
    assert len(chart.ticks) <= 8 and 0 in [round(tick, 9) for tick in chart.ticks]
    assert chart.place(low) == 0 and chart.place(high) == 100
