"""What is refused before anything is written."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from written_images import photo, put

from diffmining_core.errors import InputError
from flows.checks import check_dataset, check_inputs, check_sources
from flows.parameters import IndexParameters, MineParameters


def test_a_root_in_its_own_dataset_is_refused_and_not_made(tmp_path: Path) -> None:
    put(str(tmp_path), "photos/rome/a.png", photo())
    dataset, root = str(tmp_path / "photos"), tmp_path / "photos" / "mined"
    mined = MineParameters(dataset=dataset, root=str(root), model="tiny")
    indexed = IndexParameters(dataset=dataset, root=str(root))
    for check in (
        partial(check_dataset, indexed),
        partial(check_inputs, mined),
        partial(check_sources, mined),
    ):
        with pytest.raises(InputError, match=r"mined lies in the dataset .*photos, so that"):
            check()
    assert not root.exists()


def test_splits_and_captions_are_refused_before_the_root_is_claimed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(str(tmp_path), f"photos/{split}/rome/a.png", photo())
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"are splits and no labels; give '.*photos/\*' for all"):
        check_dataset(IndexParameters(dataset=str(tmp_path / "photos"), root=str(root)))
    assert not root.exists()
