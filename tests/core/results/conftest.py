from __future__ import annotations

from pathlib import Path

import pytest
from small_run import HOSTILE, LABELS, finished_run, write_photos

from diffmining_core.results.opened import MinedResults, open_results


@pytest.fixture(scope="session")
def mined_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and, at `mined`, a finished run of them; leave it as it is."""
    folder = tmp_path_factory.mktemp("small-run")
    write_photos(folder / "photos", LABELS)
    finished_run(folder / "mined", folder / "photos")
    return folder


@pytest.fixture(scope="session")
def results(mined_folder: Path) -> MinedResults:
    return open_results(str(mined_folder / "mined"))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> MinedResults:
    """Results whose labels would be formulas, markup or more than one line."""
    folder = tmp_path_factory.mktemp("hostile-run")
    write_photos(folder / "photos", HOSTILE)
    finished_run(folder / "mined", folder / "photos")
    return open_results(str(folder / "mined"))
