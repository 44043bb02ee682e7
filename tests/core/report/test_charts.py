from __future__ import annotations

import pytest

from diffmining_core.report.charts import HEIGHT, WIDTH, LossChart, loss_chart


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
