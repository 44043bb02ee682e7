"""What lies at a root and is no longer any use: found first, removed only when told to.

Garbage is an attempt that no manifest names, a half-written file of a process that was killed, and,
for units that are done, the copies of manifests taken back and the notes of failures. Checkpoints,
plans and all other files stay, hidden ones too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from diffmining_core.store.clock import storage_time
from diffmining_core.store.ledger import CorruptFileError, published, read_manifest
from diffmining_core.store.roots import Entry, Root

LISTERS = 16

STAGE = re.compile("[a-z][a-z0-9_]*")
KEY = re.compile("[0-9a-f]{32}")
ATTEMPT = re.compile("attempt-[0-9a-f]{32}")
RECORD = re.compile(r"[0-9a-f]{32}\.json")
HALF_WRITTEN = re.compile(r"\.(.+\.|clock-)[0-9a-f]{32}")
"""Files written aside by `Root.write_bytes` and `create_bytes`, and by `storage_time`."""
CHECK = re.compile(r"\.diffmining-check-[0-9a-f]{32}")
"""Folders of `storage check`."""


@dataclass(frozen=True)
class Garbage:
    """A folder or file `rel` that can go; stage and key of its unit, empty if it belongs to none.

    modified: when its newest file was written, in seconds since 1970 by the storage's clock.
    """

    kind: Literal["attempt", "retracted manifest", "failure", "half-written file", "storage check"]
    stage: str
    key: str
    rel: str
    files: int
    bytes: int
    modified: float


def find_garbage(root: Root, before: float) -> Iterator[Garbage]:
    """All garbage whose newest file was written before this time, by the storage's clock.

    Memory grows with the units of one stage.
    """
    for stage in _folders(root, "", STAGE):
        yield from _older(_abandoned(root, stage), before)
    for stage in _folders(root, "retracted", STAGE):
        yield from _older(_retracted(root, stage), before)
    for stage in _folders(root, "failures", STAGE):
        yield from _older(_failures(root, stage), before)
    yield from _older(_half_written(root), before)


def clear_garbage(root: Root, age: float, delete: bool) -> Iterator[tuple[Garbage, float]]:
    """Garbage of at least this age, in seconds, and the age of each; removed before it is told.

    delete: remove it; else it is only told.
    """
    # Only by writing can the storage's own time be had.
    now = storage_time(root) if delete else time.time()
    for item in find_garbage(root, before=now - age):
        if not delete or remove_garbage(root, item):
            yield item, now - item.modified


def remove_garbage(root: Root, item: Garbage) -> bool:
    """Remove it, unless its unit's manifest now says otherwise; whether it was removed.

    OSError if the storage takes the order and keeps the files.
    """
    if item.stage and not _is_garbage(root, item):
        return False
    root.remove(item.rel)
    if root.exists(item.rel):
        raise OSError(f"{root.url_of(item.rel)} could not be removed; check that you may delete")
    _drop_empty_folders(root, item.rel)
    return True


def _is_garbage(root: Root, item: Garbage) -> bool:
    try:
        manifest = read_manifest(root, item.stage, item.key)
    except CorruptFileError:
        return False  # what it names cannot be told
    if item.kind == "attempt":
        return manifest is None or manifest.attempt != item.rel
    return manifest is not None


def _older(found: Iterable[Garbage], before: float) -> Iterator[Garbage]:
    return (item for item in found if 0 < item.modified < before)


def _folders(root: Root, rel: str, pattern: re.Pattern[str]) -> list[str]:
    return [e.name for e in root.entries(rel) if e.is_folder and pattern.fullmatch(e.name)]


def _abandoned(root: Root, stage: str) -> Iterator[Garbage]:
    """The attempts of a stage that no manifest names.

    Attempts are listed before manifests, so that one published in between is seen. The only attempt
    of a finished unit is taken for the one named: that spares a request for nearly every unit.
    """

    def attempts(key: str) -> list[Entry]:
        entries = root.entries(f"{stage}/{key}")
        return [e for e in entries if e.is_folder and ATTEMPT.fullmatch(e.name)]

    keys = _folders(root, stage, KEY)
    with ThreadPoolExecutor(LISTERS) as pool:
        found = dict(zip(keys, pool.map(attempts, keys), strict=True))
        done = published(root, stage)
        doubtful = [key for key in keys if len(found[key]) > 1 or key not in done]
        for items in pool.map(lambda key: _unnamed(root, stage, key, found[key]), doubtful):
            yield from items


def _unnamed(root: Root, stage: str, key: str, attempts: Sequence[Entry]) -> list[Garbage]:
    try:
        manifest = read_manifest(root, stage, key) if attempts else None
    except CorruptFileError:
        return []  # what it names cannot be told
    rels = {f"{stage}/{key}/{entry.name}": entry.modified for entry in attempts}
    return [
        Garbage("attempt", stage, key, rel, *_measured(root, rel, modified))
        for rel, modified in rels.items()
        if manifest is None or manifest.attempt != rel
    ]


def _measured(root: Root, rel: str, modified: float) -> tuple[int, int, float]:
    """Files below a folder, their bytes, and the newest time of folder and files."""
    files, size, newest = 0, 0, modified
    for entry in root.entries(rel):
        inner = int(not entry.is_folder), entry.bytes, entry.modified
        if entry.is_folder:
            inner = _measured(root, f"{rel}/{entry.name}", entry.modified)
        files, size, newest = files + inner[0], size + inner[1], max(newest, inner[2])
    return files, size, newest


def _retracted(root: Root, stage: str) -> Iterator[Garbage]:
    """The copies of taken-back manifests of units that are done again."""
    done = published(root, stage)
    for key in _folders(root, f"retracted/{stage}", KEY):
        if key in done:
            for e in root.entries(f"retracted/{stage}/{key}"):
                if RECORD.fullmatch(e.name):
                    rel = f"retracted/{stage}/{key}/{e.name}"
                    yield Garbage("retracted manifest", stage, key, rel, 1, e.bytes, e.modified)


def _failures(root: Root, stage: str) -> Iterator[Garbage]:
    """The notes of failures of units that are done by now."""
    done = published(root, stage)
    for e in root.entries(f"failures/{stage}"):
        key = e.name.removesuffix(".json")
        if RECORD.fullmatch(e.name) and key in done:
            rel = f"failures/{stage}/{e.name}"
            yield Garbage("failure", stage, key, rel, 1, e.bytes, e.modified)


def _half_written(root: Root) -> Iterator[Garbage]:
    """Files that a killed process did not finish writing or did not remove."""
    for folder in _written_folders(root):
        for e in root.entries(folder):
            rel = f"{folder}/{e.name}" if folder else e.name
            if HALF_WRITTEN.fullmatch(e.name) and not e.is_folder:
                yield Garbage("half-written file", "", "", rel, 1, e.bytes, e.modified)
            elif CHECK.fullmatch(e.name) and e.is_folder:
                yield Garbage("storage check", "", "", rel, *_measured(root, rel, e.modified))


def _written_folders(root: Root) -> Iterator[str]:
    """The folders in which files are written aside first: on local disk only, else at the top."""
    yield ""
    if root.local("plans") is None:
        return
    yield "plans"
    for kind in ("manifests", "failures"):
        yield from (f"{kind}/{stage}" for stage in _folders(root, kind, STAGE))
    yield from _tree(root, "nights")
    for stage in _folders(root, "", STAGE):
        for key in _folders(root, stage, KEY):
            yield from _tree(root, f"{stage}/{key}/checkpoints")


def _tree(root: Root, folder: str) -> Iterator[str]:
    """A folder and all below it."""
    yield folder
    for entry in root.entries(folder):
        if entry.is_folder:
            yield from _tree(root, f"{folder}/{entry.name}")


def _drop_empty_folders(root: Root, rel: str) -> None:
    """Remove the local folders above `rel` that are empty now; on S3 there are no such."""
    if path := root.local(rel):
        with suppress(OSError):  # the first that is not empty ends it
            for folder in list(path.parents)[: rel.count("/")]:
                folder.rmdir()
