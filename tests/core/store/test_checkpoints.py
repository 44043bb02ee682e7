from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import Root

WEIGHTS = "checkpoint.safetensors"


@pytest.fixture
def checkpoints(root: Root) -> RootCheckpoints:
    return RootCheckpoints(root, "finetune/key/checkpoints", every=2)


def keep(checkpoints: RootCheckpoints, step: int, tmp_path: Path, weights: bytes) -> None:
    folder = tmp_path / f"kept-{step}"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "losses.json").write_text("[1, 2]")
    checkpoints.keep(step, folder)


def latest(checkpoints: RootCheckpoints, tmp_path: Path) -> tuple[int | None, bytes | None]:
    into = tmp_path / "fetched"
    into.mkdir()
    step = checkpoints.latest(into)
    return step, None if step is None else (into / WEIGHTS).read_bytes()


def test_there_is_none_at_first(checkpoints: RootCheckpoints, tmp_path: Path) -> None:
    assert latest(checkpoints, tmp_path) == (None, None)


def test_the_newest_comes_back_and_older_ones_go(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    keep(checkpoints, 800, tmp_path, b"old")
    keep(checkpoints, 1000, tmp_path, b"new")
    assert latest(checkpoints, tmp_path) == (1000, b"new")
    assert (tmp_path / "fetched" / "losses.json").read_text() == "[1, 2]"
    names = checkpoints.root.names(checkpoints.folder)
    assert names == ["step-000001000", "step-000001000.json"]


def test_one_without_its_record_does_not_count(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    checkpoints.root.write_bytes(f"{checkpoints.folder}/step-000000004/{WEIGHTS}", b"hal")
    assert latest(checkpoints, tmp_path) == (2, b"whole")


@pytest.mark.parametrize("stored", [b"hal", b"hald", None])
def test_a_damaged_one_is_passed_over(
    checkpoints: RootCheckpoints, tmp_path: Path, stored: bytes | None
) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    newer = f"{checkpoints.folder}/step-000000004"
    if stored is not None:
        checkpoints.root.write_bytes(f"{newer}/{WEIGHTS}", stored)
    record = {WEIGHTS: hashlib.sha256(b"half").hexdigest()}
    checkpoints.root.write_bytes(f"{newer}.json", json.dumps(record).encode())
    assert latest(checkpoints, tmp_path) == (2, b"whole")


def test_a_step_reached_again_replaces_what_was_left_of_it(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    checkpoints.root.write_bytes(f"{checkpoints.folder}/step-000000004/{WEIGHTS}", b"hal")
    keep(checkpoints, 4, tmp_path, b"half")
    assert latest(checkpoints, tmp_path) == (4, b"half")


def test_none_is_left_after_remove(checkpoints: RootCheckpoints, tmp_path: Path) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    checkpoints.remove()
    assert checkpoints.root.names(checkpoints.folder) == []
    assert latest(checkpoints, tmp_path) == (None, None)
