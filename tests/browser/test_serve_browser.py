"""The server in a real browser: a run that goes on while its status is open, then the gallery."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from contrast import contrast
from running_root import begin, finish, make_page, measure

from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import Failure, note_failure
from flows import serve as serving
from flows.serve import LOCAL_NAMES, Site, bound

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FITS = "document.documentElement.scrollWidth <= window.innerWidth"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Served:
    """A root of a run on its way, and its address while it is served."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "root")
        self.shard = begin(self.url, folder)
        self.address = ""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(serving, "STATUS_SECONDS", 0.1)
    monkeypatch.setattr(serving, "STRIPS_SECONDS", 0.1)
    root = Served(tmp_path)
    site = Site(open_root(root.url), "two buildings")
    with bound("127.0.0.1", 0) as listening:
        root.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            site.app(LOCAL_NAMES), log_level="warning", lifespan="off", ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield root
        server.should_exit = True
        thread.join()


def opened(browser: Browser, address: str, size: str = "desktop", **options: Any) -> Page:
    """The page at an address, in a context of its own."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.goto(address)
    return page


def test_an_open_status_turns_into_the_gallery(browser: Browser, served: Served) -> None:
    page = opened(browser, "about:blank")
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(served.address) else wrong.append(asked.url),
    )
    page.goto(served.address)
    assert "All that was planned is done" in page.locator("h1").inner_text()
    measure(served.url, served.shard)
    page.wait_for_selector(".so-far img", timeout=20_000)
    assert page.locator("h1").inner_text().strip() == "Typicality: 1 of 2"
    assert page.locator(".so-far h3").first.inner_text() == "<b>barn"
    sizes = page.eval_on_selector_all(".so-far img", "all => all.map(one => one.naturalWidth)")
    assert sizes == [196, 196]
    assert page.evaluate("document.querySelector('.so-far b')") is None

    make_page(served.url)
    page.wait_for_selector(".cards", timeout=20_000)
    assert page.url == f"{served.address}/"
    assert page.locator(".run-bar").is_visible()
    page.get_by_role("link", name="See how far it is").click()
    assert page.url == f"{served.address}/status"
    finish(served.url)
    page.get_by_role("heading", name="All that was planned is done").wait_for(timeout=20_000)
    page.get_by_role("link", name="The gallery").click()
    assert page.locator(".run-bar").count() == 0
    page.locator(".card a").first.click()
    page.locator(".patch").first.click()
    assert page.locator("dialog").is_visible()
    assert wrong == []
    page.context.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_status_fits_and_can_be_read(
    browser: Browser, served: Served, size: str, scheme: str
) -> None:
    measure(served.url, served.shard)
    reason = "The device ran out of memory at one image of 4096 × 4096 px; take smaller images."
    note_failure(open_root(served.url), "patches", "0" * 64, Failure(reason * 3))
    page = opened(browser, f"{served.address}/status", size, color_scheme=scheme)
    page.wait_for_selector(".so-far img", timeout=20_000)
    assert page.evaluate(FITS)
    assert reason in page.locator(".notes").inner_text()
    body = "getComputedStyle(document.body).backgroundColor"
    for chosen in (".stage-finished h3", ".stage-pace", "#detail", ".stage-chip"):
        style = f"getComputedStyle(document.querySelector('{chosen}'))"
        own = chosen == ".stage-chip"
        behind = page.evaluate(f"{style}.backgroundColor" if own else body)
        assert contrast(page.evaluate(f"{style}.color"), behind) >= 4.5, chosen
    page.context.close()


def test_without_script_the_status_says_the_same(browser: Browser, served: Served) -> None:
    measure(served.url, served.shard)
    page = opened(browser, served.address, java_script_enabled=False)
    end = time.monotonic() + 20
    while not page.locator(".so-far img").count():
        assert time.monotonic() < end
        page.reload()
    assert page.locator("h1").inner_text().strip() == "Typicality: 1 of 2"
    assert page.locator(".stage-line").count() == 4
    page.context.close()
