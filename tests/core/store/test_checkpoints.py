from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from diffmining_core.store import roots
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import Root

WEIGHTS = "checkpoint.safetensors"


@pytest.fixture
def checkpoints(root: Root) -> RootCheckpoints:
    return RootCheckpoints(root, "finetune/key/checkpoints")


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
    assert [name.removesuffix(".json") for name in names] == [names[0]] * 2
    assert re.fullmatch("step-000001000-[0-9a-f]{32}", names[0])


def test_a_long_file_comes_in_several_blocks(
    checkpoints: RootCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "BLOCK", 1000)
    weights = random.Random(0).randbytes(4321)
    keep(checkpoints, 2, tmp_path, weights)
    assert latest(checkpoints, tmp_path) == (2, weights)


def write(checkpoints: RootCheckpoints, step: int, weights: bytes | None, marker: bytes) -> None:
    """A checkpoint as a crash, a bad disk or another process may leave it."""
    name = f"{checkpoints.folder}/step-{step:09d}-{uuid4().hex}"
    if weights is not None:
        checkpoints.root.write_bytes(f"{name}/{WEIGHTS}", weights)
    if marker:
        checkpoints.root.write_bytes(f"{name}.json", marker)


HALF = json.dumps({WEIGHTS: hashlib.sha256(b"half").hexdigest()}).encode()


def test_one_without_its_record_does_not_count(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    write(checkpoints, 4, b"half", b"")
    assert latest(checkpoints, tmp_path) == (2, b"whole")


@pytest.mark.parametrize("stored", [b"hal", b"hald", None])
def test_a_damaged_one_is_passed_over(
    checkpoints: RootCheckpoints, tmp_path: Path, stored: bytes | None
) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    write(checkpoints, 4, stored, HALF)
    assert latest(checkpoints, tmp_path) == (2, b"whole")


@pytest.mark.parametrize(
    "marker",
    [
        b"{",
        b"[]",
        b"[1]",
        b"{}",
        b'["a"]',
        b'"a"',
        b"\xff",
        b'{"../out": "0"}',
        b"null",
        b"[" * 100_000,
    ],
)
def test_one_whose_record_is_garbage_is_passed_over(
    checkpoints: RootCheckpoints, tmp_path: Path, marker: bytes
) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    write(checkpoints, 4, b"half", marker)
    assert latest(checkpoints, tmp_path) == (2, b"whole")


def test_nothing_of_a_damaged_one_stays_with_what_is_fetched(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    record = {"extra": hashlib.sha256(b"1").hexdigest(), WEIGHTS: "0"}
    name = f"{checkpoints.folder}/step-000000004-{uuid4().hex}"
    checkpoints.root.write_bytes(f"{name}/extra", b"1")
    checkpoints.root.write_bytes(f"{name}.json", json.dumps(record).encode())
    keep(checkpoints, 2, tmp_path, b"whole")
    assert latest(checkpoints, tmp_path) == (2, b"whole")
    assert not (tmp_path / "fetched" / "extra").exists()


def test_a_step_reached_again_replaces_what_was_left_of_it(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    write(checkpoints, 4, b"hal", HALF)
    keep(checkpoints, 4, tmp_path, b"half")
    assert latest(checkpoints, tmp_path) == (4, b"half")


def test_a_slower_process_leaves_the_newer_one_of_another(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    keep(checkpoints, 1000, tmp_path, b"ahead")
    keep(checkpoints, 800, tmp_path, b"behind")
    assert latest(checkpoints, tmp_path) == (1000, b"ahead")


def test_processes_at_one_unit_do_not_disturb_each_other(
    checkpoints: RootCheckpoints, tmp_path: Path
) -> None:
    """One of the writers is done early and removes everything, again and again."""

    def weights(step: int) -> bytes:
        return b"%d" % step * 1000

    def work(process: int) -> None:
        own = tmp_path / str(process)
        own.mkdir()
        for step in range(1, 5):
            keep(checkpoints, step, own, weights(step))
            (own / "fetched").mkdir()
            came = checkpoints.latest(own / "fetched")
            if came is not None:
                assert (own / "fetched" / WEIGHTS).read_bytes() == weights(came)
            shutil.rmtree(own / "fetched")
            if process == 0:
                checkpoints.remove()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    keep(checkpoints, 9, tmp_path, weights(9))
    assert latest(checkpoints, tmp_path) == (9, weights(9))
    checkpoints.remove()
    assert checkpoints.root.names(checkpoints.folder) == []


def test_none_is_left_after_remove(checkpoints: RootCheckpoints, tmp_path: Path) -> None:
    keep(checkpoints, 2, tmp_path, b"whole")
    write(checkpoints, 4, b"half", b"")
    write(checkpoints, 4, None, HALF)
    checkpoints.remove()
    assert checkpoints.root.names(checkpoints.folder) == []
    assert latest(checkpoints, tmp_path) == (None, None)


def test_as_many_stay_as_are_asked_for(root: Root, tmp_path: Path) -> None:
    checkpoints = RootCheckpoints(root, "finetune/key/checkpoints", kept=2)
    for step in (2, 4, 6, 8):
        keep(checkpoints, step, tmp_path, b"%d" % step)
    assert checkpoints.steps() == [6, 8]
    shutil.rmtree(tmp_path / "kept-6")
    keep(checkpoints, 6, tmp_path, b"again")  # a slower process comes along
    assert checkpoints.steps() == [6, 8]
    (tmp_path / "six").mkdir()
    checkpoints.fetch(6, tmp_path / "six")
    assert (tmp_path / "six" / WEIGHTS).read_bytes() == b"again"


def test_all_stay_where_there_is_no_limit(root: Root, tmp_path: Path) -> None:
    checkpoints = RootCheckpoints(root, "finetune/key/checkpoints/snapshots", kept=None)
    for step in (2, 4, 6):
        keep(checkpoints, step, tmp_path, b"%d" % step)
    assert checkpoints.steps() == [2, 4, 6]
    with pytest.raises(FileNotFoundError, match="step 3 is not there"):
        checkpoints.fetch(3, tmp_path)
    outer = RootCheckpoints(root, "finetune/key/checkpoints")
    assert outer.steps() == []
    outer.remove()
    assert checkpoints.steps() == []
