from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from contrast import contrast
from viewed import is_open, open_label, wait_for_pictures

if TYPE_CHECKING:
    from playwright.sync_api import Page


def natural_widths(page: Page, selector: str) -> list[int]:
    widths = page.eval_on_selector_all(selector, "all => all.map(image => image.naturalWidth)")
    assert isinstance(widths, list)
    return widths


def test_overview_shows_every_label_and_leads_to_its_page(page: Page, site: Path) -> None:
    page.goto((site / "index.html").as_uri())
    cards = page.locator(".card a")
    assert cards.count() == 8
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    for picture in page.locator("img").all():  # those out of sight load when they come near
        picture.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    page.locator(".card").get_by_role("link", name="tower").click()
    assert page.locator("h1").inner_text() == "tower"
    page.get_by_role("link", name="All labels").click()
    assert page.locator(".card").count() == 8


def test_every_page_fits_its_width(page: Page, site: Path) -> None:
    for path in [site / "index.html", *site.glob("labels/*.html")]:
        page.goto(path.as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        assert page.evaluate(fits), path.name
        if path.name != "index.html":
            page.locator(".patch").first.click()
            inside = page.eval_on_selector("#viewer", "v => v.scrollWidth <= v.clientWidth")
            assert inside, path.name


def test_a_click_opens_the_patch_in_its_image_before_and_after(page: Page, site: Path) -> None:
    open_label(page, site)
    patch = page.locator(".cluster .patch").nth(1)
    patch.click()
    assert is_open(page)
    wait_for_pictures(page)
    assert page.locator(".stage:visible").count() == 2
    assert min(natural_widths(page, "#viewer img")) > 0
    assert page.locator("#viewer-title").inner_text() == "barn · Cluster 1"
    assert page.locator(".score output").inner_text() == patch.get_attribute("data-score")
    assert '"quoted" & <b>.png' in page.locator(".file").inner_text()
    y, x, size = (patch.get_attribute("data-box") or "").split()
    line = page.locator(".stage:visible .line").last
    assert [line.get_attribute(name) for name in ("y", "x", "width")] == [y, x, size]


def test_the_frame_lies_on_the_patch(page: Page, site: Path) -> None:
    open_label(page, site)
    patch = page.locator(".cluster .patch").first
    patch.click()
    wait_for_pictures(page)
    y, x, size = map(int, (patch.get_attribute("data-box") or "").split())
    canvas = page.locator("[data-side=after] .canvas").bounding_box()
    line = page.locator("[data-side=after] .line").bounding_box()
    width = page.eval_on_selector("[data-side=after] .photo", "image => image.naturalWidth")
    assert canvas and line
    enlarged = canvas["width"] / width
    middle = (canvas["x"] + enlarged * (x + size / 2), canvas["y"] + enlarged * (y + size / 2))
    assert line["x"] + line["width"] / 2 == pytest.approx(middle[0], abs=2)
    assert line["y"] + line["height"] / 2 == pytest.approx(middle[1], abs=2)


def test_the_keyboard_opens_turns_and_closes(page: Page, site: Path) -> None:
    open_label(page, site)
    patches = page.locator(".row").first.locator(".patch")
    patches.nth(0).focus()
    page.keyboard.press("Enter")
    assert is_open(page)
    place = page.locator(".place")
    assert place.inner_text() == "1 of 6"
    for _ in range(8):  # two more than there are
        page.keyboard.press("ArrowRight")
    assert place.inner_text() == "6 of 6"
    page.keyboard.press("ArrowLeft")
    assert place.inner_text() == "5 of 6"
    page.keyboard.press("ArrowDown")
    assert "Highest, after finetuning" in page.locator("#viewer-title").inner_text()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    wait_for_pictures(page)
    page.keyboard.press("Escape")
    assert not is_open(page)
    assert patches.nth(1).evaluate("patch => patch === document.activeElement")


def test_buttons_turn_and_close_and_the_backdrop_closes(page: Page, site: Path) -> None:
    open_label(page, site)
    page.locator(".patch").first.click()
    following = page.get_by_role("button", name="Next patch")
    for _ in range(7):
        following.click(force=True)  # at the end it says so and does nothing
    assert page.locator(".place").inner_text() == "6 of 6"
    assert following.get_attribute("aria-disabled") == "true"
    page.keyboard.press("ArrowLeft")
    assert page.locator(".place").inner_text() == "5 of 6"
    page.get_by_role("button", name="Close").click()
    assert not is_open(page)
    page.locator(".patch").first.click()
    page.mouse.click(3, 3)
    assert not is_open(page)


def test_the_slider_fades_the_overlay_and_keeps_its_arrow_keys(page: Page, site: Path) -> None:
    open_label(page, site)
    page.locator(".patch").first.click()
    wait_for_pictures(page)
    slider = page.get_by_label("Overlay")
    for value, opacity in (("0", 0), ("100", 1), ("30", 0.3)):
        slider.fill(value)
        shown = page.eval_on_selector_all(
            ".overlay", "all => all.map(one => Number(getComputedStyle(one).opacity))"
        )
        assert shown == pytest.approx([opacity] * 2)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "35"
    assert page.locator(".place").inner_text() == "1 of 6"


def test_hostile_labels_do_nothing(page: Page, site: Path) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    for path in site.glob("labels/*.html"):
        page.goto(path.as_uri())
        page.locator(".patch").first.click()
        wait_for_pictures(page)
    page.goto((site / "index.html").as_uri())
    assert page.locator("h2", has_text="<script>alert(1)</script>").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(page: Page, site: Path, scheme: str) -> None:
    """Contrast by WCAG 2: at least 4.5 to 1, of muted text too."""
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    open_label(page, site)
    colours = page.eval_on_selector(
        ".tally",
        "one => [getComputedStyle(one).color, getComputedStyle(document.body).backgroundColor]",
    )
    assert contrast(*colours) >= 4.5
