"""Every link of the documentation leads somewhere, and every picture is there and used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from written_pages import FENCE, REPOSITORY, Page, pages

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"^[a-z]+:")


class Link(NamedTuple):
    """A link on a page, and what it leads to."""

    page: str
    to: str

    @property
    def file(self) -> Path:
        """The file that it leads to."""
        own = REPOSITORY / self.page
        path = self.to.partition("#")[0]
        return (own.parent / path).resolve() if path else own

    @property
    def anchor(self) -> str:
        """The heading on it, empty for its beginning."""
        return self.to.partition("#")[2]


def links(page: Page) -> Iterator[Link]:
    """The links of a page to other files."""
    for to in LINK.findall(re.sub(r"`[^`]*`", "`", page.prose)):
        if not EXTERNAL.match(to):
            yield Link(page.path, to)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#{1,6} (.+?)\s*$", FENCE.sub("", text), re.MULTILINE)
    seen: Counter[str] = Counter()
    found = set()
    for heading in headings:
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("\\", "").replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        (
            "## `--adaptive`: fewer draws for the same top",
            "--adaptive-fewer-draws-for-the-same-top",
        ),
        ("# Positive, negative, units", "positive-negative-units"),
        ("### diffmining\\_core.load\\_pixels", "diffmining_coreload_pixels"),
    ],
)
def test_anchors_are_githubs(heading: str, anchor: str) -> None:
    assert anchors(heading) == {anchor}


def test_links_lead_to_files_and_headings() -> None:
    broken = []
    for page in pages():
        for link in links(page):
            if not link.file.exists() or (
                link.anchor and link.anchor not in anchors(link.file.read_text(encoding="utf-8"))
            ):
                broken.append(f"{link.page}: {link.to}")
    assert broken == []


def test_every_page_and_picture_is_led_to() -> None:
    led_to = {link.file for page in pages() for link in links(page)}
    there = {
        path
        for pattern in ("*.md", "*.png", "*.svg", "*.webp")
        for path in (REPOSITORY / "docs").rglob(pattern)
    }
    assert sorted(path.name for path in there - led_to) == []


def test_the_index_of_the_documentation_has_every_page() -> None:
    index = next(page for page in pages() if page.path == "docs/README.md")
    listed = {link.file for link in links(index)}
    there = {page.file for page in pages() if page.path.startswith("docs/")} - {index.file}
    assert sorted(path.name for path in there - listed) == []
