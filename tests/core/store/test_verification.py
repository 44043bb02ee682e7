from __future__ import annotations

import threading
from pathlib import Path

import pytest

from diffmining_core.store import roots
from diffmining_core.store.ledger import (
    Attempt,
    CorruptFileError,
    Manifest,
    complete,
    is_intact,
    read_manifests,
    retract,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.store.verification import Damage, damaged_files, holdings

UNITS = [
    Unit(stage, "1", (images,), {}) for stage in ("index", "typicality") for images in ("a", "b")
]


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("maps/values", bytes(range(256)))
    attempt.write_bytes("empty", b"")


@pytest.fixture
def done(root: Root) -> list[Manifest]:
    return [complete(root, unit, produce) for unit in UNITS]


def damaged(root: Root) -> list[Damage]:
    held = holdings(root)
    return [*held.damage, *damaged_files(root, held.files, lambda _: None)]


@pytest.mark.usefixtures("done")
def test_all_files_of_all_stages_are_read_to_the_end(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "BLOCK", 100)
    held = holdings(root)
    assert (held.units, len(held.files), held.bytes, held.damage) == (4, 8, 4 * 256, [])
    read: list[int] = []
    assert list(damaged_files(root, held.files, read.append)) == []
    assert sum(read) == held.bytes
    assert max(read) == 100  # in blocks


def test_what_is_damaged_is_named_with_its_unit(root: Root, done: list[Manifest]) -> None:
    flipped, missing, short, unread = done
    root.write_bytes(f"{flipped.attempt}/maps/values", bytes(255) + b"x")
    root.remove(f"{missing.attempt}/empty")
    root.write_bytes(f"{short.attempt}/maps/values", bytes(100))
    root.write_bytes(f"manifests/{unread.unit}.json", b"{")
    found = {f"{one.stage}/{one.key}": one.sentence for one in damaged(root)}
    assert found.keys() == {manifest.unit for manifest in done}
    url = root.url_of(f"{flipped.attempt}/maps/values")
    sha256 = flipped.files["maps/values"]["sha256"]
    assert f"{url}: expected 256 bytes with sha256 {sha256}, got 256 bytes" in found[flipped.unit]
    assert found[missing.unit] == f"{root.url_of(f'{missing.attempt}/empty')} is missing"
    assert "got 100 bytes" in found[short.unit]
    assert "is not a valid manifest" in found[unread.unit]


def test_every_manifest_beyond_reading_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    good = complete(root, UNITS[0], produce)
    (tmp_path / good.attempt / "empty").write_bytes(b"x")
    place = tmp_path / "manifests/index"
    (place / f"{'1' * 32}.json").mkdir()
    (place / f"{'2' * 32}.json").write_bytes(b"[" * 100_000)
    (place / f"{'3' * 32}.json").write_bytes(b"\xff\xfe")
    (place / f"{'4' * 32}.json").symlink_to(f"{'4' * 32}.json")  # which leads to itself
    (place / "back\\slash.json").write_bytes(b"{}")
    (place / f"{UNITS[0].key} (1).json").write_bytes((place / f"{UNITS[0].key}.json").read_bytes())
    (place / ".DS_Store").write_bytes(b"")
    held = holdings(root)
    assert [one.key for one in held.damage] == sorted(
        ["1" * 32, "2" * 32, "3" * 32, "4" * 32, "back\\slash", f"{UNITS[0].key} (1)"]
    )
    sentences = {one.key: one.sentence for one in held.damage}
    assert "is not a valid manifest (it is a folder: move it elsewhere)" in sentences["1" * 32]
    assert "recursion limit exceeded" in sentences["2" * 32]
    assert f"belongs to 'index/{UNITS[0].key}'" in sentences[f"{UNITS[0].key} (1)"]
    (found,) = damaged_files(root, held.files, lambda _: None)
    assert found.key == UNITS[0].key


def test_a_folder_in_the_place_of_a_manifest_is_named_on_every_storage(root: Root) -> None:
    root.write_new(f"manifests/index/{'1' * 32}.json/inner", b"1")
    (found,) = damaged(root)
    assert "it is a folder" in found.sentence


def test_progress_reaches_the_end_whatever_is_damaged(root: Root, done: list[Manifest]) -> None:
    root.remove(f"{done[0].attempt}/maps/values")
    root.write_bytes(f"{done[1].attempt}/maps/values", bytes(1000))
    held = holdings(root)
    read: list[int] = []
    assert len(list(damaged_files(root, held.files, read.append))) == 2
    assert sum(read) == held.bytes


def test_a_unit_made_anew_in_the_meantime_is_not_damaged(root: Root, done: list[Manifest]) -> None:
    held = holdings(root)
    root.remove(f"{done[0].attempt}/maps/values")
    retract(root, UNITS[0].stage, UNITS[0].key)
    complete(root, UNITS[0], produce)
    retract(root, UNITS[1].stage, UNITS[1].key)
    assert list(damaged_files(root, held.files, lambda _: None)) == []


def test_a_file_the_disk_cannot_read_is_damaged(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    manifest = complete(root, UNITS[0], produce)
    path = tmp_path / manifest.attempt / "empty"
    path.unlink()
    path.mkdir()  # reading a folder is an OSError to root, too
    (found,) = damaged(root)
    assert found.key == manifest.key


def test_a_fault_of_one_reading_is_not_damage(root: Root, done: list[Manifest]) -> None:
    """The file is repaired between the two readings, as a truncated answer would be."""
    held = holdings(root)
    rel = f"{done[0].attempt}/maps/values"
    root.write_bytes(rel, b"cut off")
    mended = threading.Event()

    def mend(_: int) -> None:
        if not mended.is_set():
            mended.set()
            root.write_bytes(rel, bytes(range(256)))

    files = [file for file in held.files if file.rel == rel]
    assert list(damaged_files(root, files, mend)) == []
    assert mended.is_set()


def test_a_root_without_results_holds_nothing(root: Root) -> None:
    held = holdings(root)
    assert (held.units, held.files, held.damage, held.bytes) == (0, [], [], 0)


def test_a_manifest_that_is_a_link_to_nowhere_is_named_and_made_anew(tmp_path: Path) -> None:
    root = open_root(str(tmp_path / "root"))
    made = complete(root, UNITS[0], produce)
    file = tmp_path / "root" / "manifests" / f"{made.unit}.json"
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    (found,) = damaged(root)
    assert "it is a link that leads nowhere" in found.sentence
    assert not is_intact(root, made.stage, made.key)
    with pytest.raises(CorruptFileError, match="leads nowhere"):
        read_manifests(root, made.stage)
    retract(root, made.stage, made.key)
    assert complete(root, UNITS[0], produce).key == made.key
    assert damaged(root) == []
