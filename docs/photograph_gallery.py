"""Take the pictures of the gallery that the tutorial shows, with Chromium and Playwright.

    python docs/photograph_gallery.py --root demo

Of a label's page its strips and clusters, and of a patch that is opened its image with the maps.
What names folders of this machine is left out.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LABEL = "Dorrava"
PATCH = 7
"""Which patch of the page is opened: the second of the highest after finetuning."""
WIDTH, HEIGHT = 1200, 860


def save(page: Page, to: Path, x: float, y: float, width: float, height: float) -> None:
    """A part of the page as WebP."""
    shot = page.screenshot(full_page=True, clip={"x": x, "y": y, "width": width, "height": height})
    Image.open(io.BytesIO(shot)).convert("RGB").save(to, quality=86, method=6)


def label_page(page: Page, to: Path) -> None:
    """A label's page from its heading to its last cluster."""
    heading = page.get_by_role("heading", name="Whole images").bounding_box()
    assert heading is not None
    save(page, to, 0, 0, WIDTH, heading["y"] - 24)


def opened_patch(page: Page, to: Path) -> None:
    """A patch in its image, before and after finetuning, down to what stands below these two."""
    page.locator("a.patch").nth(PATCH).click()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)
    dialog = page.locator("dialog").bounding_box()
    words = page.locator("dialog").get_by_text("After finetuning", exact=True).bounding_box()
    assert dialog is not None and words is not None
    page.locator("dialog dl").evaluate("list => list.style.visibility = 'hidden'")
    end = words["y"] + words["height"] + 12
    save(page, to, dialog["x"], dialog["y"], dialog["width"], end - dialog["y"])


def main() -> None:
    """Open the gallery of a mined demo from disk and save both pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="where `make demo` left its results")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    chromium = next(path for name in BROWSERS if (path := shutil.which(name)))
    index = Path(arguments.root).resolve() / "index.html"
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(index.as_uri())
        page.get_by_role("link", name=LABEL).first.click()
        page.wait_for_load_state("networkidle")
        label_page(page, arguments.to / "tutorial-label.webp")
        opened_patch(page, arguments.to / "tutorial-patch.webp")
        browser.close()


if __name__ == "__main__":
    main()
