from __future__ import annotations

import os
import time
from pathlib import Path
from uuid import uuid4

from diffmining_core.store.clock import storage_time
from diffmining_core.store.garbage import Garbage, find_garbage, remove_garbage
from diffmining_core.store.ledger import (
    Attempt,
    complete,
    read_bytes,
    retract,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import Failure, note_failure, open_run, plan_stage
from diffmining_core.store.units import Unit
from diffmining_core.store.verification import damaged_files, holdings

UNIT = Unit("typicality", "1", ("images 1",), {})
OTHER = Unit("typicality", "1", ("images 2",), {})
UNDONE = Unit("finetune", "1", ("images 1",), {})


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("maps/values", bytes(range(256)))
    attempt.write_bytes("table.parquet", b"table")


def abandon(root: Root, unit: Unit) -> str:
    """What a run that was killed while it stored a unit leaves."""
    attempt = Attempt(root, unit)
    produce(attempt)
    return attempt.folder


def all_garbage(root: Root) -> list[Garbage]:
    return list(find_garbage(root, before=time.time() + 60))


def rels(root: Root) -> set[str]:
    return {item.rel for item in all_garbage(root)}


def test_attempts_that_no_manifest_names_can_go(root: Root) -> None:
    beaten, crashed = abandon(root, UNIT), abandon(root, UNDONE)
    manifest, other = complete(root, UNIT, produce), complete(root, OTHER, produce)
    found = all_garbage(root)
    assert {item.rel for item in found} == {beaten, crashed}
    assert {(item.kind, item.files, item.bytes) for item in found} == {("attempt", 2, 261)}
    assert [remove_garbage(root, item) for item in found] == [True, True]
    assert all_garbage(root) == []
    assert root.names(UNIT.stage + "/" + UNIT.key) == [manifest.attempt.rpartition("/")[2]]
    assert read_bytes(root, other, "table.parquet") == b"table"
    assert list(damaged_files(root, holdings(root).files, lambda _: None)) == []


def test_what_is_younger_than_the_age_stays(root: Root) -> None:
    abandon(root, UNIT)
    now = storage_time(root)
    assert list(find_garbage(root, before=now - 3600)) == []
    (item,) = find_garbage(root, before=now + 60)
    assert now - 60 < item.modified <= now + 1


def test_one_new_file_keeps_an_attempt(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    rel = abandon(root, UNIT)
    age_by(tmp_path / rel, 1000)
    before = time.time() - 500
    assert [item.rel for item in find_garbage(root, before)] == [rel]
    root.write_new(f"{rel}/maps/deep/new", b"1")
    for folder in ("maps/deep", "maps", "."):
        age(tmp_path / rel / folder, 1000)
    assert list(find_garbage(root, before)) == []


def age_by(folder: Path, seconds: float) -> None:
    for path in [*folder.rglob("*"), folder]:
        age(path, seconds)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_records_of_units_that_are_done_again_can_go(root: Root) -> None:
    first = complete(root, UNIT, produce)
    note_failure(root, UNIT.stage, UNIT.key, Failure("out of memory"))
    note_failure(root, OTHER.stage, OTHER.key, Failure("out of memory"))
    for unit in (UNIT, OTHER):
        complete(root, unit, produce)
        retract(root, unit.stage, unit.key)
    assert first.attempt in rels(root)
    complete(root, UNIT, produce)
    found = all_garbage(root)
    records = [item for item in found if item.kind != "attempt"]
    assert {(item.kind, item.key) for item in records} == {
        ("retracted manifest", UNIT.key),
        ("failure", UNIT.key),
    }
    assert all(remove_garbage(root, item) for item in found)
    assert root.names(f"failures/{UNIT.stage}") == [f"{OTHER.key}.json"]
    assert root.names(f"retracted/{UNIT.stage}") == [OTHER.key]
    assert rels(root) == set()


def test_all_else_stays(root: Root) -> None:
    open_run(root, {"dataset": "/data", "model": "tiny"})
    complete(root, UNIT, produce)
    plan_stage(root, UNIT.stage, [UNIT.key])
    kept = [
        f"finetune/{UNDONE.key}/checkpoints/step-000000002.json",
        f"finetune/{UNDONE.key}/notes.txt",
        f"typicality/{UNIT.key}/attempt-mine/values",
        f"typicality/backup/attempt-{uuid4().hex}/values",
        f"retracted/typicality/{UNIT.key}/notes.txt",
        "index.html",
        "my files/a",
    ]
    for rel in kept:
        root.write_new(rel, b"1")
    assert rels(root) == set()


def test_half_written_files_can_go_and_nothing_else_that_is_hidden(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    complete(root, UNIT, produce)
    aside = uuid4().hex
    left = {
        f".index.html.{aside}",
        f".run.json.{aside}",
        f".clock-{aside}",
        f"plans/.typicality.json.{aside}",
        f"manifests/typicality/.{UNIT.key}.json.{aside}",
        f"failures/typicality/.{UNIT.key}.json.{aside}",
        f"nights/.index.html.{aside}",
        f"nights/2026-11-21/.message.json.{aside}",
        f"{UNDONE.stage}/{UNDONE.key}/checkpoints/.step-000000002-{aside}.json.{aside}",
        f"{UNDONE.stage}/{UNDONE.key}/checkpoints/snapshots/.step-1.json.{aside}",
    }
    kept = {
        ".DS_Store",
        ".nfs000000000000000100000001",
        f".{aside}",
        f".notes.{aside}.txt",
        f".index.html.{aside[1:]}",
        "nights/.DS_Store",
        "manifests/typicality/._a.json",
        f"my files/.a.{aside}",
    }
    for rel in left | kept:
        root.write_new(rel, b"123")
    root.write_new(f".diffmining-check-{aside}/first", b"first")
    (tmp_path / f".photos.{aside}").mkdir()
    found = {item.rel: item for item in all_garbage(root)}
    assert found.keys() == left | {f".diffmining-check-{aside}"}
    assert {(found[rel].kind, found[rel].files, found[rel].bytes) for rel in left} == {
        ("half-written file", 1, 3)
    }
    check = found[f".diffmining-check-{aside}"]
    assert (check.kind, check.files, check.bytes) == ("storage check", 1, 5)
    assert list(find_garbage(root, time.time() - 3600)) == []
    assert all(remove_garbage(root, item) for item in found.values())
    assert rels(root) == set()
    assert all(root.exists(rel) for rel in kept)
    assert (tmp_path / f".photos.{aside}").is_dir()


def test_what_a_check_of_the_storage_left_can_go_everywhere(root: Root) -> None:
    root.write_new(f".diffmining-check-{'1' * 32}/first", b"first")
    root.write_new(f".clock-{'1' * 32}", b"tick")
    root.write_new(".diffmining-check-of-mine/a", b"1")
    found = all_garbage(root)
    assert {item.kind for item in found} == {"half-written file", "storage check"}
    assert all(remove_garbage(root, item) for item in found)
    assert root.names() == [".diffmining-check-of-mine"]


def test_an_attempt_published_after_it_was_listed_stays(root: Root) -> None:
    produced: list[str] = []

    def listed_before(attempt: Attempt) -> None:
        produce(attempt)
        produced.append(attempt.folder)
        listed.extend(all_garbage(root))

    listed: list[Garbage] = []
    manifest = complete(root, UNIT, listed_before)
    (item,) = listed
    assert item.rel == produced[0] == manifest.attempt
    assert not remove_garbage(root, item)
    assert read_bytes(root, manifest, "table.parquet") == b"table"


def test_a_failure_of_a_unit_taken_back_meanwhile_stays(root: Root) -> None:
    complete(root, UNIT, produce)
    note_failure(root, UNIT.stage, UNIT.key, Failure("out of memory"))
    (item,) = all_garbage(root)
    retract(root, UNIT.stage, UNIT.key)
    assert not remove_garbage(root, item)
    assert root.exists(item.rel)


def test_a_unit_whose_manifest_cannot_be_read_keeps_all(root: Root) -> None:
    manifest = complete(root, UNIT, produce)
    beaten = abandon(root, UNIT)
    (item,) = all_garbage(root)
    assert item.rel == beaten
    root.write_bytes(f"manifests/{UNIT.stage}/{UNIT.key}.json", b"{")
    assert all_garbage(root) == []
    assert not remove_garbage(root, item)
    assert root.exists(beaten)
    assert root.exists(manifest.attempt)


def test_emptied_folders_go_too(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    abandon(root, UNDONE)
    (item,) = all_garbage(root)
    assert remove_garbage(root, item)
    assert list(tmp_path.iterdir()) == []
