"""The examples in the docstrings, run where a finished run is at `mined`."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

MODULES = ("diffmining_core", "diffmining_core.results.opened")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_the_public_names_are_true(
    module: str, mined_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("mined", "photos"):
        (tmp_path / part).symlink_to(mined_folder / part)
    monkeypatch.chdir(tmp_path)
    ran = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert ran.attempted and not ran.failed
