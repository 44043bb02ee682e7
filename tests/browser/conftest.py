"""A headless Chromium, and a small site opened in it from disk; without one the tests skip."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from diffmining_core.report import write_site

# The report's own tests draw the same site.
sys.path.insert(0, str(Path(__file__).parents[1] / "core" / "report"))
from drawn_site import HOSTILE, drawn_source

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Nothing here may reach for the network, and neither may the browser on its own account.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")  # while it runs, Prefect takes this thread for one of asyncio's
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the Python package playwright is missing"
    )
    chromium = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("chromium is missing: infra/install-chromium.sh installs it")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a site") / "with #odd ?name"
    write_site(drawn_source(labels=["barn", "tower", *HOSTILE]), folder)
    return folder


def failure(request: Request) -> list[str]:
    """What is wrong with a failed request; a picture still loading as its page is left is not."""
    left = request.failure == "net::ERR_ABORTED"
    return [] if left else [f"failed, {request.failure}: {request.url}"]


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty page that fails its test for any console error, page error or request outside."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type != "log" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.extend(failure(request)))
    page.on(
        "request",
        lambda request: None if request.url.startswith("file:") else wrong.append(request.url),
    )
    yield page
    context.close()
    assert wrong == []
