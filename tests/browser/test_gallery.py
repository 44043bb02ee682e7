"""The gallery in a real browser, of a few labels and of 365: search, sort, compare, look closer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from drawn_site import drawn_source
from viewed import is_open, open_label, wait_for_pictures

from diffmining_core.report import write_site
from diffmining_core.report.source import label_slugs

if TYPE_CHECKING:
    from playwright.sync_api import Page

MANY = [f"ward {number:03d}" for number in range(363)] + ["Café Ōsaka", "ward <b>"]

# It may neither fetch the style sheet again nor talk to a frame, whose page is checked by itself.
AXE = {"resultTypes": ["violations"], "preload": False, "iframes": False}


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    write_site(drawn_source(labels=MANY, images_per_label=3, signs=[], with_before=False), folder)
    return folder


def shown_labels(page: Page) -> list[str]:
    return page.locator(".card:visible h2").all_inner_texts()


def test_among_365_labels_a_few_letters_find_one(page: Page, many: Path) -> None:
    page.goto((many / "index.html").as_uri())
    assert page.locator(".card").count() == 365
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.keyboard.press("/")
    page.keyboard.type("cafe os")  # whatever accents it is written with
    assert shown_labels(page) == ["Café Ōsaka"]
    assert page.get_by_role("status").inner_text() == "1 of 365"
    page.get_by_role("searchbox").fill("no such")
    assert page.get_by_text("No label has these letters").is_visible()
    page.get_by_role("searchbox").fill("ward 36")
    assert shown_labels(page) == ["ward 360", "ward 361", "ward 362"]
    page.get_by_role("searchbox").fill("ward 362")
    page.keyboard.press("Enter")
    assert page.locator("h1").inner_text() == "ward 362"


def test_pictures_far_down_wait_until_they_are_near(page: Page, many: Path) -> None:
    page.goto((many / "index.html").as_uri())
    page.wait_for_timeout(300)
    loaded = "() => [...document.querySelectorAll('.cover img')].filter(one => one.complete).length"
    assert 0 < page.evaluate(loaded) < 365


def test_labels_sort_by_what_is_asked(page: Page, site: Path) -> None:
    page.goto((site / "index.html").as_uri())
    names = shown_labels(page)
    page.get_by_label("Sort by").select_option("clusters")
    assert shown_labels(page) == names  # all have two: their order stays
    values = "all => all.map(card => Number(card.dataset.typicality))"
    page.get_by_label("Sort by").select_option("typicality")
    typicality = page.eval_on_selector_all(".card", values)
    assert typicality == sorted(typicality, reverse=True)
    page.get_by_label("Sort by").select_option("name")
    assert shown_labels(page) == names


def cluster_numbers(page: Page) -> list[str]:
    numbers = page.locator("#ranked .cluster:visible").evaluate_all(
        "all => all.map(one => one.dataset.rank)"
    )
    assert isinstance(numbers, list)
    return numbers


@pytest.fixture(scope="session")
def three_clusters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose label has clusters of 8, 6 and 9 members."""
    folder = tmp_path_factory.mktemp("clusters")
    source = drawn_source(labels=["barn"], images_per_label=23, signs=[], sizes=(8, 6, 9))
    write_site(source, folder)
    return folder


def test_clusters_sort_and_small_ones_hide(page: Page, three_clusters: Path) -> None:
    open_label(page, three_clusters)
    assert cluster_numbers(page) == ["1", "2", "3"]
    page.get_by_label("Sort by").select_option("members")
    assert cluster_numbers(page) == ["3", "1", "2"]
    page.get_by_label("Sort by").select_option("spread")
    assert cluster_numbers(page) == ["3", "2", "1"]
    page.get_by_label("At least").fill("8")
    assert cluster_numbers(page) == ["3", "1"]
    assert page.get_by_role("status").inner_text() == "1 of 3 hidden"
    page.get_by_label("Sort by").select_option("rank")
    page.get_by_label("At least").fill("1")
    assert cluster_numbers(page) == ["1", "2", "3"]


def test_a_patch_leads_to_those_that_look_most_alike(page: Page, site: Path) -> None:
    open_label(page, site)
    first = page.locator(".cluster .patch").first
    wanted = (first.get_attribute("data-alike") or "").split()
    assert len(wanted) == 6
    first.click()
    alike = page.locator(".alike-patches button")
    assert alike.count() == 6
    alike.first.click()
    wait_for_pictures(page)
    other = page.locator(f'.patch[data-number="{wanted[0]}"]')
    assert page.locator(".score output").inner_text() == other.get_attribute("data-score")
    name = (other.get_attribute("aria-label") or "").rpartition(", ")[2]
    assert page.locator(".file-name").inner_text() == name
    assert page.locator(".file-path").inner_text().startswith("memory://")
    assert re.fullmatch("[0-9a-f]{32}", page.locator(".file-id").inner_text())


def test_a_whole_image_opens_without_a_frame(page: Page, site: Path) -> None:
    open_label(page, site)
    assert page.locator(".histogram .helps, .histogram .hurts").count() > 0
    page.get_by_role("link", name="Most typical image 1,").click()
    wait_for_pictures(page)
    assert is_open(page)
    assert page.locator(".of-what").inner_text() == "image"
    assert page.locator(".frame:visible").count() == 0
    page.keyboard.press("Escape")
    page.locator(".cluster .patch").first.click()
    assert page.locator(".frame:visible").count() == 2


def test_clusters_lead_to_those_of_other_labels_that_look_alike(page: Page, site: Path) -> None:
    open_label(page, site)
    link = page.locator(".alike a").first
    assert link.inner_text() == "tower 1"
    link.click()
    assert page.locator("h1").inner_text() == "tower"
    assert page.url.endswith("tower.html#cluster-1")


def test_two_labels_stand_side_by_side(page: Page, site: Path) -> None:
    open_label(page, site, "tower")
    page.get_by_role("link", name="Compare").click()
    first, second = (page.frame_locator(f"iframe[name={name}]") for name in "ab")
    assert first.locator("h1").inner_text() == "tower"
    assert second.locator("h1").inner_text() != "tower"
    assert not first.locator(".trail").is_visible()
    page.get_by_role("combobox", name="Second label").select_option(label="barn")
    second.locator("h1", has_text="barn").wait_for()
    assert page.url.endswith("#a=tower&b=barn")
    page.reload()
    second.locator("h1", has_text="barn").wait_for()
    assert first.locator("h1").inner_text() == "tower"
    first.locator(".patch").first.click()
    assert first.locator("#viewer").evaluate("viewer => viewer.open")
    boxes = [page.locator(f"iframe[name={name}]").bounding_box() for name in "ab"]
    assert all(box and box["width"] > 180 and box["height"] > 250 for box in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_established_checker_finds_no_barrier(page: Page, site: Path, scheme: str) -> None:
    """axe-core's rules, WCAG 2 A and AA among them."""
    checker = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    hostile = next(slug for label, slug in label_slugs(["<script>alert(1)</script>"]).items())
    for path in ("index.html", "labels/barn.html", f"labels/{hostile}.html", "compare.html"):
        page.goto((site / path).as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        if path == "labels/barn.html":
            page.locator(".cluster .patch").first.click()
            wait_for_pictures(page)
        found = checker.run(page, options=AXE)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"


def test_without_script_everything_is_there_to_read(page: Page, site: Path) -> None:
    assert page.context.browser is not None
    context = page.context.browser.new_context(java_script_enabled=False)
    bare = context.new_page()
    bare.goto((site / "labels" / "barn.html").as_uri())
    assert bare.locator(".cluster").count() == 2
    assert not bare.locator(".tools").first.is_visible()
    bare.locator(".cluster .patch").first.click()  # a plain link to the image
    assert bare.url.endswith(".webp")
    context.close()
