"""The page of a parallel dataset in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from contrast import contrast
from drawn_parallel import drawn_parallel, square
from drawn_site import HOSTILE

from diffmining_core.report.parallel import write_parallel

if TYPE_CHECKING:
    from playwright.sync_api import Page

LABELS = ["barn", "tower", HOSTILE[0], HOSTILE[4], "mill", "shed", "hall", "quay", "pier", "gate"]


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a parallel") / "with #odd ?name"
    folder.mkdir()
    write_parallel(drawn_parallel(LABELS), folder)
    return folder


def test_the_page_fits_its_width_and_rows_scroll_in_their_own(page: Page, parallel: Path) -> None:
    page.goto((parallel / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    rows = page.locator(".across").first
    wider = rows.evaluate("rows => rows.scrollWidth - rows.clientWidth")
    if page.viewport_size and page.viewport_size["width"] < 500:
        assert wider > 0
        rows.evaluate("rows => rows.scrollLeft = 10000")
        name = rows.locator("tbody th").first.bounding_box()
        assert name
        assert name["x"] >= 0  # which row it is stays in sight
    last = rows.locator("tbody tr").nth(1).locator("td").last
    last.scroll_into_view_if_needed()
    box = last.bounding_box()
    assert box
    assert box["width"] >= 60


def test_every_patch_shows_its_own_colour(page: Page, parallel: Path) -> None:
    page.goto((parallel / "index.html").as_uri())
    page.wait_for_load_state("load")
    missing = page.evaluate(
        """async () => {
          const shown = [...document.querySelectorAll("svg image")];
          const paths = new Set(shown.map((image) => image.href.baseVal));
          const loaded = await Promise.all([...paths].map((path) => new Promise((done) => {
            const image = new Image();
            image.onload = () => done(image.naturalWidth > 0);
            image.onerror = () => done(false);
            image.src = path;
          })));
          return loaded.filter((one) => !one).length;
        }"""
    )
    assert missing == 0
    swatch = page.locator("#cluster-1 .trend rect").nth(1)
    red, green, blue = square(0, 1)
    fill = swatch.evaluate("rect => getComputedStyle(rect).fill")
    assert fill == f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sources_frame_is_seen_on_either_ground(
    page: Page, parallel: Path, scheme: str
) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto((parallel / "index.html").as_uri())
    framed = page.locator("#cluster-1 .own")
    assert framed.count() == 6
    colour = framed.first.locator("svg").evaluate("svg => getComputedStyle(svg).outlineColor")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert contrast(colour, ground) >= 3
    corner = framed.first.evaluate("cell => getComputedStyle(cell, '::after').backgroundColor")
    assert corner == colour  # not by the colour of the frame alone


def test_a_cluster_is_found_from_the_table_of_colours(page: Page, parallel: Path) -> None:
    page.goto((parallel / "index.html").as_uri())
    page.locator(".colours a", has_text="2").click()
    heading = page.locator("#cluster-2 h3")
    page.wait_for_function("() => location.hash === '#cluster-2'")
    assert heading.is_visible()
