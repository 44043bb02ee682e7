"""The pages of studies that mine side by side, written from made-up numbers."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_site import HOSTILE
from PIL import Image

from diffmining_core.report.sides import (
    NOISE,
    PATCH_SIZES,
    TIMESTEPS,
    Pair,
    SideNumbers,
    Sides,
    sides_page,
)
from diffmining_core.report.study_page import (
    NUMBERS,
    Table,
    markdown,
    render_study_page,
    write_study_page,
)

LABELS = ["barn", *HOSTILE[:2]]


def drawn(what: str, known: bool = True) -> Sides:
    """Four sides of which the first two and the last two belong together."""
    names = ["first", "second", "third", "fourth"]
    truth: dict[str, Any] = {
        "average_precision": 0.4,
        "base_rate": 0.1,
        "hits": {"highest": 0.9, "random": 0.2, "lowest": 0.0},
    }
    sides = [
        SideNumbers(name, 100.0 * place, "ab"[place // 2], 0.01, 0.5, **(truth if known else {}))
        for place, name in enumerate(names)
    ]
    pairs = [(1, 0), (2, 0), (3, 0)] if what != NOISE else [(0, 1), (2, 3)]
    if what == PATCH_SIZES:
        pairs = [(0, 2), (1, 2), (3, 2)]
    tile = np.full((10, 10, 3), 128, np.uint8)
    return Sides(
        title=f"Study of {HOSTILE[0]}",
        sides=sides,
        pairs=[Pair(first, second, 0.5, 0.25) for first, second in pairs],
        labels=LABELS,
        tiles=lambda _label: {name: [tile] * 8 for name in names},
        facts={"notes": [], "dataset": {"folder": HOSTILE[1]}},
    )


@pytest.mark.parametrize("what", [TIMESTEPS, NOISE, PATCH_SIZES])
@pytest.mark.parametrize("known", [True, False])
def test_a_page_has_all_that_it_links_to(what: str, known: bool, tmp_path: Path) -> None:
    page = sides_page(what, drawn(what, known))
    write_study_page(page, tmp_path)
    html = (tmp_path / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len(set(linked)) >= len(LABELS) + 3
    assert all((tmp_path / name).is_file() for name in linked)
    assert "<script>" not in html
    assert "<img src=x" not in html
    assert ("average precision" in html) == known
    with Image.open(tmp_path / "figures" / "overview.png") as overview:
        assert overview.width > 300
    for chart in (tmp_path / "figures").glob("*.svg"):
        assert len(ElementTree.parse(chart).findall(".//{*}polyline")) >= 2
    stored = json.loads((tmp_path / NUMBERS).read_text())
    assert [side["name"] for side in stored["sides"]] == ["first", "second", "third", "fourth"]
    assert len(stored["pairs"]) == len(page.numbers["pairs"])
    assert stored["table"]["columns"] == list(page.tables[0].columns)
    assert 'href="there/study.json"' in render_study_page(page, "there/")


def test_the_ranges_of_timesteps_are_held_against_the_one_that_is_mined() -> None:
    page = sides_page(TIMESTEPS, drawn(TIMESTEPS))
    precision = next(chart for chart in page.charts if chart.name == "precision")
    assert list(precision.at) == [100, 200, 300]
    assert precision.lines["as mined"] == [0.4] * 3
    assert page.tables[0].rows[0][-2:] == ["–", "–"]
    assert page.tables[0].rows[1][-2:] == ["0.500", "25 %"]


def test_seeds_of_a_way_of_drawing_are_summed_up_in_one_row() -> None:
    page = sides_page(NOISE, drawn(NOISE))
    assert [row[:2] for row in page.tables[0].rows] == [
        ["a", "0.500 ± 0.000"],
        ["b", "0.500 ± 0.000"],
    ]
    assert len(page.tables[1].rows) == 4
    assert page.dots is not None
    assert [len(strip.dots) for strip in page.dots.groups[1].strips] == [2, 2]


def test_the_size_that_is_mined_is_not_held_against_itself() -> None:
    page = sides_page(PATCH_SIZES, drawn(PATCH_SIZES))
    assert [row[-1] for row in page.tables[0].rows] == ["25 %", "25 %", "as mined", "25 %"]


def test_the_table_for_prefects_ui_is_plain_text_in_markdown() -> None:
    text = markdown(Table(["name", "b"], [["<b>", "1"]], ""), "page")
    assert text.splitlines()[:3] == ["| name | b |", "| --- | ---: |", "| \\<b\\> | 1 |"]
