"""The page of a localisation in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from drawn_localization import drawn_localization
from drawn_site import HOSTILE

from diffmining_core.report.localization import write_localization

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def localization(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("localization")
    write_localization(drawn_localization(["barn", HOSTILE[0], HOSTILE[4]]), folder)
    return folder


def test_the_page_fits_its_width_and_shows_all_its_pictures(page: Page, localization: Path) -> None:
    page.goto((localization / "index.html").as_uri())
    for picture in page.locator("img").all():  # those out of sight load when they come near
        picture.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    assert page.locator("img").count() == 3 * 3 * 3
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("h3", has_text=HOSTILE[0]).count() == 2


def test_dots_lie_where_their_scores_are(page: Page, localization: Path) -> None:
    page.goto((localization / "index.html").as_uri())
    strip = page.locator(".dots-strip").first
    axis = strip.locator(".dots-axis").bounding_box()
    mean = strip.locator(".dots-mean")
    line = mean.bounding_box()
    share = float((mean.get_attribute("x1") or "").removesuffix("%")) / 100
    assert axis and line
    middle = line["x"] + line["width"] / 2
    assert middle == pytest.approx(axis["x"] + share * axis["width"], abs=2)
    assert strip.locator("circle").count() == 5
