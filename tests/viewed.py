"""A label's page, and the viewer of its patches, as tests handle them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def open_label(page: Page, site: Path, slug: str = "barn") -> None:
    page.goto((site / "labels" / f"{slug}.html").as_uri())


def is_open(page: Page) -> bool:
    return bool(page.eval_on_selector("#viewer", "viewer => viewer.open"))


def wait_for_pictures(page: Page) -> None:
    page.wait_for_function(
        """() => [...document.querySelectorAll("#viewer .stage:not([hidden]) img")].every(
            image => image.complete && image.naturalWidth > 0
        ) && !document.querySelector("#viewer .stage:not([hidden]) .loading")"""
    )
