"""The page of a comparison, written from made numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from diffmining_core.report.comparison import (
    Comparison,
    Growth,
    MethodNumbers,
    comparison_page,
    comparison_table,
)
from diffmining_core.report.figures import Tile
from diffmining_core.report.study_page import write_study_page


def method(name: str, hits: float | None, slope: float) -> MethodNumbers:
    growth = [
        Growth(n, 2 + slope * n, None if hits is None else hits - 1 / n) for n in (25, 50, 90)
    ]
    purity = None if hits is None else {"oslo": [1.0, 0.5], "rome": [0.5, 0.0]}
    return MethodNumbers(name, hits, hits, purity, 0 if name == "random" else 60.0, growth, 1.25)


def made(*methods: MethodNumbers, base_rate: float | None = 0.09) -> Comparison:
    def tiles(label: str) -> Mapping[str, Sequence[Tile]]:
        grey = 60 if label == "oslo" else 160
        return {one.name: [np.full((12, 12, 3), grey, np.uint8)] * 4 for one in methods}

    return Comparison("Ways <b>", methods, base_rate, ["oslo", "rome"], tiles, {"notes": []})


def test_the_table_says_what_each_way_finds_and_takes() -> None:
    table = comparison_table(made(method("typicality", 0.97, 0.5), method("random", None, 0.01)))
    assert len(table.columns) == 9
    assert table.rows[0] == [
        "typicality", "97%", "0.970", "75%", "50%", "60", "47", "1.2", "500",
    ]  # fmt: skip
    assert table.rows[1] == ["random", "–", "–", "–", "–", "–", "2.9", "1.2", "10"]
    assert "By chance it is 0.090" in table.words
    assert "By chance" not in comparison_table(made(method("x", None, 1), base_rate=None)).words


def test_further_images_cost_what_the_last_ones_did() -> None:
    assert method("x", 1, 0.25).seconds_per_1000 == pytest.approx(250)
    assert method("x", 1, -0.01).seconds_per_1000 == 0
    one = MethodNumbers("x", None, None, None, 0, [Growth(9, 3, None)], 0)
    assert one.seconds_per_1000 is None
    assert one.best_purity is one.mean_purity is None


def test_the_page_has_curves_tables_and_pictures(tmp_path: Path) -> None:
    methods = (method("typicality", 0.97, 0.5), method("Doersch et al.", 0.4, 3))
    write_study_page(comparison_page(made(*methods)), tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert html.count("<polyline") == 2 * len(methods)
    assert "Ways &lt;b&gt;" in html
    assert all((tmp_path / name).is_file() for name in re.findall(r'src="([^"]+)"', html))
    stored = json.loads((tmp_path / "study.json").read_text())
    assert [one["name"] for one in stored["methods"]] == ["typicality", "Doersch et al."]
    assert stored["methods"][0]["best_purity"] == pytest.approx(0.75)
    assert stored["table"]["rows"][1][0] == "Doersch et al."


def test_without_truth_or_parts_the_curves_are_left_out() -> None:
    unknown = comparison_page(made(method("a", None, 1), method("b", None, 1), base_rate=None))
    assert [chart.name for chart in unknown.charts] == ["seconds"]
    single = MethodNumbers("x", 0.5, None, None, 0, [Growth(9, 3, 0.5)], 0)
    assert comparison_page(made(single)).charts == ()
