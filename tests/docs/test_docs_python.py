"""The Python of the documentation runs, a page's blocks one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_pages import Page, blocks, pages

NOT_RUN = {
    "docs/export.md": "tests/core/results runs it, on a mined root",
    "docs/models.md": "downloads CLIP from the hub",
    "docs/python.md": "tests/core/results runs it, on a mined root",
    "docs/reference/python.md": "signatures",
}
"""Pages whose Python is not run here, and why."""

IN_PLACE_OF = {"images_per_country=40": "images_per_country=1"}
"""Numbers that only decide how long it takes."""


def with_python() -> list[Page]:
    return [page for page in pages() if any(block.language == "python" for block in blocks(page))]


def test_the_table_names_no_page_that_is_gone() -> None:
    assert set(NOT_RUN) <= {page.path for page in with_python()}


@pytest.mark.parametrize(
    "page", [page for page in with_python() if page.path not in NOT_RUN], ids=lambda page: page.path
)
def test_the_python_of_a_page_runs(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python":
            text = block.text
            for said, small in IN_PLACE_OF.items():
                text = text.replace(said, small)
            exec(compile(text, page.path, "exec"), names)
