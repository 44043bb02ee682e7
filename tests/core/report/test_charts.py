from __future__ import annotations

import pytest

from diffmining_core.report.charts import (
    HEIGHT,
    WIDTH,
    LossChart,
    bin_chart,
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
