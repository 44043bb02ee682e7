"""The examples in docstrings and documentation, run where a finished run is at `mined`."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

from diffmining_core.results.exports.coco import export_coco
from diffmining_core.results.exports.huggingface import export_huggingface
from diffmining_core.results.exports.mined_images import MinedImages
from diffmining_core.results.exports.target import open_target
from diffmining_core.results.opened import MinedResults

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def place(mined_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the run and its photos."""
    for part in ("mined", "photos"):
        (tmp_path / part).symlink_to(mined_folder / part)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str, *, but: str = " ") -> None:
    """Run the Python of a page, one block after the other, without those that import `but`."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.S | re.M)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            if f"import {but}" not in block:
                exec(compile(block, page, "exec"), names)
    assert names


@pytest.mark.parametrize("module", ["diffmining_core", "diffmining_core.results.opened"])
@pytest.mark.usefixtures("place")
def test_the_examples_of_the_public_names_are_true(module: str) -> None:
    ran = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert ran.attempted and not ran.failed


def test_the_page_about_python_runs(place: Path) -> None:
    run("python.md")
    assert (place / "overlay.png").exists() and (place / "clusters.pdf").exists()


def test_the_page_about_exports_runs(
    place: Path, results: MinedResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    export_coco(results, MinedImages(results), open_target("coco"))
    export_huggingface(results, MinedImages(results), open_target("patches"))
    run("export.md", but="fiftyone")
    assert (place / "patch.png").exists()
