"""What runs need of a storage, tried out at the place a user names.

In: the address of a folder or bucket. Out: one finding for each need. Nothing that lies there
already is read or changed.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fsspec.implementations.local import LocalFileSystem

from diffmining_core.errors import InputError
from diffmining_core.store.clock import storage_time
from diffmining_core.store.roots import (
    NoConditionalCreateError,
    Root,
    explained,
    filesystem,
    open_root,
)

WRITERS = 12
RACES = 8
LISTED_FILES = 20
PART = 5 * 2**20
"""Bytes of one part; the least that S3 allows."""

BIG_FILE = 12_000_000
MOST_SKEW = 15 * 60
"""Seconds; S3 refuses requests signed by a clock that is further off."""


@dataclass(frozen=True)
class Finding:
    """Whether the storage meets one need, and in a sentence what that means for runs."""

    name: str
    holds: bool
    sentence: str


@dataclass(frozen=True)
class Need:
    """Something runs need of a storage.

    tried(root, folder): tries it below `folder` and returns the sentence that says it holds, else
    raises OSError or InputError. otherwise: what it means for runs if it does not.
    """

    name: str
    tried: Callable[[Root, str], str]
    otherwise: str

    def finding(self, root: Root, folder: str) -> Finding:
        """Try it; a refusal is a finding too."""
        try:
            return Finding(self.name, True, self.tried(root, folder))
        except NoConditionalCreateError as error:
            return Finding(self.name, False, str(error))
        except (InputError, OSError) as error:
            return Finding(self.name, False, f"{error}: {self.otherwise}")


def check_storage(url: str) -> Generator[Finding, None, None]:
    """Try out each need at `url`, in a hidden folder of its own that is removed in the end.

    Where nothing can be written, that is the only finding. InputError where there is nothing to
    try: an address that is not understood, no such bucket, no credentials, a refused listing.
    """
    absent = _absent_folders(url)
    root, folder = open_root(url), f".diffmining-check-{uuid4().hex}"
    try:
        yield (written := WRITE.finding(root, folder))
        if written.holds:
            for need in (READ, REPLACE, LIST, CREATE, PARTS, CLOCK, DELETE):
                yield need.finding(root, folder)
    finally:
        with suppress(InputError, OSError):
            root.remove(folder)
        for path in absent:
            with suppress(OSError):
                path.rmdir()


def _absent_folders(url: str) -> list[Path]:
    """The local folders that opening a root at `url` makes, innermost first."""
    try:
        fs, path = filesystem(url)
    except (ValueError, ImportError):  # open_root explains it
        return []
    if not isinstance(fs, LocalFileSystem):
        return []
    return [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]


def _write(root: Root, folder: str) -> str:
    root.write_new(f"{folder}/first", b"first")
    return "files can be written, so runs can keep results here."


def _read(root: Root, folder: str) -> str:
    if (came := root.read_bytes(f"{folder}/first")) != b"first":
        raise OSError(f"5 bytes were written and other bytes came back ({came[:20]!r})")
    return "what was written came back the same, so runs can go on from what is here."


def _replace(root: Root, folder: str) -> str:
    for turn in range(LISTED_FILES):
        root.write_bytes(f"{folder}/replaced", b"%d" % turn)
        if (came := root.read_bytes(f"{folder}/replaced")) != b"%d" % turn:
            raise OSError(f"a file replaced with {turn} still read {came[:20]!r}")
    return (
        f"a file replaced {LISTED_FILES} times always read as written last, so the page and the "
        "status are up to date."
    )


def _list(root: Root, folder: str) -> str:
    for turn in range(LISTED_FILES):
        root.write_new(f"{folder}/listed/{turn:02d}", b"")
        if (listed := len(root.names(f"{folder}/listed"))) != turn + 1:
            raise OSError(f"{turn + 1} files were written and {listed} were listed right after")
    return (
        f"{LISTED_FILES} files were each listed right after they were written, so a rerun finds "
        "all that is done."
    )


def _create(root: Root, folder: str) -> str:
    won = _race(root, folder)
    for turn in range(RACES):
        winners = [writer for writer, turns in enumerate(won) if turn in turns]
        if len(winners) != 1:
            raise OSError(
                f"of {WRITERS} writers racing to create one file {len(winners)} were told that "
                "they made it"
            )
        if (came := root.read_bytes(f"{folder}/race/{turn}")) != b"%d" % winners[0]:
            raise OSError(
                f"writer {winners[0]} was told that it made a file, but it reads {came[:20]!r}"
            )
    return (
        f"of {WRITERS} writers racing for each of {RACES} names exactly one won, so several runs "
        "can share this root."
    )


def _race(root: Root, folder: str) -> list[list[int]]:
    """The turns that each writer was told it won."""
    start = threading.Barrier(WRITERS)

    def race(writer: int) -> list[int]:
        won = []
        try:
            for turn in range(RACES):
                start.wait()
                if root.create_bytes(f"{folder}/race/{turn}", b"%d" % writer):
                    won.append(turn)
        except threading.BrokenBarrierError:
            return won  # another writer failed, and its error is the one to tell
        except BaseException:
            start.abort()
            raise
        return won

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(race, range(WRITERS)))


def _parts(root: Root, folder: str) -> str:
    rel, data = f"{folder}/parts", os.urandom(BIG_FILE)
    path, seam = root.path_of(rel), slice(PART - 7, PART + 9)
    with explained(root.url):
        root.fs.pipe_file(path, data, chunksize=PART)
        across = root.fs.cat_file(path, start=seam.start, end=seam.stop)
    came = root.read_bytes(rel)
    if hashlib.sha256(came).digest() != hashlib.sha256(data).digest():
        raise OSError(f"{len(data)} bytes were written and other bytes came back ({len(came)})")
    if across != data[seam]:
        raise OSError(f"bytes {seam.start} to {seam.stop} of a file came back wrong")
    return (
        f"{BIG_FILE / 1e6:.0f} MB, on S3 in parts of 5 MiB, came back whole, and so did a range "
        "across two parts, so models of any size can be kept."
    )


def _clock(root: Root, folder: str) -> str:
    before = time.time()
    stored = storage_time(root, folder)
    after = time.time()
    # The storage may cut its time to whole seconds.
    skew = max(before - (stored + 1), stored - after, 0.0)
    if skew > MOST_SKEW:
        raise OSError(f"the storage's clock and this machine's differ by {skew / 60:.0f} minutes")
    if skew > 1:
        return (
            f"the storage's clock and this machine's differ by {skew:.0f} s, which does no harm "
            f"below {MOST_SKEW // 60} minutes."
        )
    return "the storage's clock and this machine's agree, so ages and time left are right."


def _delete(root: Root, folder: str) -> str:
    root.remove(folder)
    if names := root.names(folder):
        raise OSError(f"{len(names)} files that were removed are still listed")
    return "all that this check wrote is removed again, so gc can clean up."


WRITE = Need("Write", _write, "no run can keep results here")
READ = Need("Read", _read, "no run can go on from what is here")
REPLACE = Need("Replace", _replace, "the page and the status may be out of date for a while")
LIST = Need("List after write", _list, "a rerun may compute again what is done already")
CREATE = Need(
    "Conditional create",
    _create,
    "two runs at once could both publish a unit, so run only one at a time",
)
PARTS = Need("Multipart", _parts, "files over 100 MB, such as models, cannot be kept here")
CLOCK = Need(
    "Clock",
    _clock,
    f"S3 refuses requests once clocks differ by {MOST_SKEW // 60} minutes and time left is wrong; "
    "set the clock of this machine",
)
DELETE = Need(
    "Delete",
    _delete,
    "finetuning, which drops old checkpoints, and gc need that; remove the folder "
    ".diffmining-check-* yourself",
)
