from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from contrast import contrast
from drawn_nights import drawn_digest, night_name, write_nights

if TYPE_CHECKING:
    from playwright.sync_api import Page

FITS = "document.documentElement.scrollWidth <= window.innerWidth"
SHOWN = "() => [...document.images].every(image => image.complete && image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nights(tmp_path_factory.mktemp("some root") / "with #odd ?name")


def test_one_walks_from_all_nights_through_each_and_back(page: Page, pages: Path) -> None:
    page.goto((pages / "index.html").as_uri())
    assert page.locator("h1").inner_text() == "Nights"
    page.wait_for_function(SHOWN)
    page.locator(".night").first.click()
    assert page.locator("h1").inner_text() == "20 November 2026"
    page.get_by_role("link", name="19 November 2026").click()
    assert "Nothing new tonight" in page.locator(".lead").inner_text()
    page.get_by_role("link", name="18 November 2026").click()
    assert "everything is new" in page.locator(".lead").inner_text()
    page.get_by_role("link", name="All nights").click()
    assert page.locator(".night").count() == 3
    page.get_by_role("link", name="All results").click()
    assert page.title() == "results"


def test_every_page_of_a_night_fits_its_width(page: Page, pages: Path) -> None:
    for path in sorted(pages.rglob("*.html")):
        page.goto(path.as_uri())
        page.wait_for_function(SHOWN)  # to leave while some still load fails them
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        assert page.evaluate(FITS), path.parent.name


def test_the_pictures_of_what_entered_are_there(page: Page, pages: Path) -> None:
    page.goto((pages / night_name(2) / "index.html").as_uri())
    sizes = page.eval_on_selector_all(
        ".entered .patch svg", "all => all.map(one => one.getBoundingClientRect().width)"
    )
    assert len(sizes) == 120 and min(sizes) > 20
    page.screenshot()  # a picture that cannot be had fails the test as a failed request
    page.locator(".entered .row").first.click()
    assert page.title() == "label"


def test_hostile_labels_do_nothing_on_the_nights(page: Page, pages: Path) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto((pages / night_name(2) / "index.html").as_uri())
    assert page.locator("h3", has_text="<script>alert(1)</script>").count() == 2
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nights_are_legible_in_light_and_dark(page: Page, pages: Path, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto((pages / night_name(2) / "index.html").as_uri())
    for selector in (".badge", ".chip", ".stats dt", ".legend"):
        colours = page.eval_on_selector(
            selector,
            """one => {
                const own = getComputedStyle(one);
                const ground = own.backgroundColor === "rgba(0, 0, 0, 0)"
                    ? getComputedStyle(document.body).backgroundColor : own.backgroundColor;
                return [own.color, ground];
            }""",
        )
        assert contrast(*colours) >= 4.5, selector


def test_a_thousand_nights_open_at_once(page: Page, tmp_path: Path) -> None:
    row = drawn_digest(tmp_path / "picture", labels=["barn"], patches=1).row()
    rows = [replace(row, night=night_name(number), strip=None) for number in range(3, 1000)]
    pages = write_nights(tmp_path / "root", rows)
    begun = time.monotonic()
    page.goto((pages / "index.html").as_uri())
    assert page.locator(".night").count() == 1000
    assert page.evaluate(FITS)
    assert time.monotonic() - begun < 30, "seconds; two, on cores that nobody else uses"
