from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diffmining_core.report.charts import (
    HEIGHT,
    WIDTH,
    LossChart,
    bin_chart,
    histogram_chart,
    line_chart,
    loss_chart,
    strip_plot,
)


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def inside(chart: LossChart) -> bool:
    return all(
        0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(chart.raw) + points(chart.smooth)
    )


def test_a_falling_loss_falls_on_the_page() -> None:
    chart = loss_chart([(step, 1 - step / 1000) for step in range(1000)])
    heights = [y for _, y in points(chart.smooth)]
    assert heights == sorted(heights)
    assert len(heights) <= 400
    assert inside(chart)
    assert [text for _, text in chart.x_ticks] == ["0", "200", "400", "600", "800"]


@pytest.mark.parametrize(
    "curve", [[(0, 0.5)], [(0, 0.0), (1, 0.0)], [(10, 1e6), *((n, 0.1) for n in range(11, 300))]]
)
def test_short_flat_and_spiked_curves_stay_in_the_picture(curve: list[tuple[int, float]]) -> None:
    assert inside(loss_chart(curve))


def test_held_out_losses_share_the_axes_of_the_training_loss() -> None:
    curve = [(step, 0.1) for step in range(100)]
    chart = loss_chart(curve, held_out=[(0, 0.4), (100, 0.2)], seen=[(0, 0.4), (100, 0.1)])
    (x0, y0), (x1, y1) = chart.held_out_dots
    assert points(chart.held_out) == [(x0, y0), (x1, y1)]
    assert points(chart.seen)[1] == pytest.approx((x1, points(chart.smooth)[-1][1]))
    assert (x0, x1) == (chart.left, chart.right)
    assert (chart.bottom - y0) == pytest.approx(2 * (chart.bottom - y1), abs=0.2)
    assert chart.last_held_out == 0.2
    assert loss_chart(curve).last_held_out is None
    assert inside(chart)


def test_bars_of_timesteps_are_as_high_as_their_losses() -> None:
    chart = bin_chart([0.4, None, 0.1], [0.2, 0.1, 0.1])
    assert chart is not None
    assert len(chart.first) == 2
    heights = [height for _, _, _, height in chart.last]
    assert chart.first[0][3] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert all(x + width <= chart.right for x, _, width, _ in chart.first + chart.last)
    assert [text for _, text in chart.x_ticks] == ["0", "666"]
    assert bin_chart([], []) is None
    assert bin_chart([None], [None]) is None


def test_dots_of_a_strip_lie_where_their_values_are() -> None:
    plot = strip_plot({"Mass": {"before": [0.05, 0.45], "after": [0.8]}}, {"Mass": 0.2})
    (group,) = plot.groups
    before, after = group.strips
    assert [x for x, _ in before.dots] == [25, 75]  # square roots of 1/16 and 9/16
    assert before.mean == pytest.approx(100 * (0.25 / 0.8) ** 0.5, abs=0.01)
    assert after.mean == 100
    assert group.chance == 50
    assert plot.ticks[4:] == [(50, "0.2"), (70.71, "0.4"), (86.6, "0.6"), (100, "0.8")]


def test_of_very_many_a_strip_shows_some_and_their_dots_stay_inside() -> None:
    values = [number / 5000 for number in range(5000)]
    plot = strip_plot({"Mass": {"after": values}, "None": {"after": [0.0]}}, {"Mass": 0, "None": 0})
    dots = plot.groups[0].strips[0].dots
    assert len(dots) == 200
    assert (dots[0][0], dots[-1][0]) == (0, 100)
    assert all(0 < y < plot.height for _, y in dots)
    assert plot.groups[0].strips[0].mean == pytest.approx(70.7, abs=0.1)


def test_a_strip_of_zeros_is_drawn() -> None:
    plot = strip_plot({"Mass": {"after": [0.0, 0.0]}}, {"Mass": 0.0})
    assert [x for x, _ in plot.groups[0].strips[0].dots] == [0, 0]


def test_a_line_chart_reaches_below_zero_where_numbers_do() -> None:
    chart = line_chart([1, 2.5, 7.5], {"a": [0.2, -0.1, 0.1], "b": [0, 0, 0]})
    (_, high), (_, low), (_, middle) = chart.lines[0].dots
    assert high < middle < chart.zero < low == chart.bottom
    assert chart.lines[1].dots[0][1] == chart.zero
    assert (chart.zero - high) == pytest.approx(2 * (low - chart.zero), abs=0.2)
    assert chart.lines[0].dots[0][0] == chart.left
    assert "0" in [text for _, text in chart.y_ticks]
    assert "-0.1" in [text for _, text in chart.y_ticks]
    above = line_chart([0, 1], {"a": [0.5, 1.0]})
    assert above.zero == above.bottom


def test_names_of_lines_that_end_together_stay_apart_and_in_the_picture() -> None:
    ends = {"a": 1.0, "b": 0.99, "c": 0.98, "d": 0.0, "e": 0.01}
    chart = line_chart([0, 1], {name: [0.5, end] for name, end in ends.items()})
    heights = sorted(line.name_y for line in chart.lines)
    assert all(below - above >= 14 for above, below in pairwise(heights))
    assert 10 <= heights[0] <= heights[-1] <= chart.bottom
    assert min(chart.lines, key=lambda line: line.name_y).name == "a"


def test_a_line_chart_of_nothing_but_zeros_is_flat() -> None:
    chart = line_chart([0, 1], {"a": [0.0, 0.0]})
    assert {y for _, y in chart.lines[0].dots} == {chart.bottom}


def test_a_histogram_counts_all_values_and_no_bar_straddles_zero() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 400)
    chart = histogram_chart(values.tolist())
    assert chart.zero is not None
    for x, _, width, height, above in chart.bars:
        assert (x >= chart.zero - 0.1) == above
        assert above or x + width <= chart.zero + 0.1
        assert height > 0
    left, right = chart.bars[0], chart.bars[-1]
    assert chart.left <= left[0] < right[0] + right[2] <= chart.right + 0.1
    assert [text for _, text in chart.x_ticks if text.startswith("−")], "a minus sign, no hyphen"


def test_a_value_far_from_all_others_leaves_them_readable() -> None:
    near = np.random.default_rng(0).normal(0, 1, 400).tolist()
    assert len(histogram_chart([*near, 1e6]).bars) > 20


def test_a_histogram_of_equal_values_is_one_bar() -> None:
    for values in ([0.0], [2.5, 2.5, 2.5]):
        assert len(histogram_chart(values).bars) == 1
