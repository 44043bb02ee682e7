"""Every file of every finished unit read again and compared with its manifest.

In: the ledger of a root. Out: what is damaged. Memory grows with the number of files (about 1 KB
for each), never with their size.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import (
    CorruptFileError,
    FileRecord,
    Manifest,
    manifest_entries,
    read_manifest,
    stages,
    unreadable_manifest,
)
from diffmining_core.store.roots import Root, checked_name

READERS = 8
"""Files read at a time, a block of each in memory."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a finished unit (stage, key): its path below the root, and what it should be."""

    stage: str
    key: str
    rel: str
    expected: FileRecord


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of the unit (stage, key), or with its manifest.

    sentence: the file's address, what was expected and what came.
    """

    stage: str
    key: str
    sentence: str


@dataclass(frozen=True)
class Holdings:
    """What the ledger says is there: finished units, their files, and manifests beyond reading."""

    units: int
    files: list[StoredFile]
    damage: list[Damage]

    @property
    def bytes(self) -> int:
        """The length of all files."""
        return sum(file.expected["bytes"] for file in self.files)


def holdings(root: Root) -> Holdings:
    """All that is published at the root, of all stages."""
    units = [
        (stage, key, entry.is_folder)
        for stage in stages(root)
        for key, entry in sorted(manifest_entries(root, stage).items())
    ]
    files: list[StoredFile] = []
    damage: list[Damage] = []
    for found in _each(lambda unit: _read_manifest(root, *unit), units):
        if isinstance(found, Damage):
            damage.append(found)
        elif found is not None:
            files += [
                StoredFile(found.stage, found.key, f"{found.attempt}/{name}", record)
                for name, record in found.files.items()
            ]
    return Holdings(len(units), files, damage)


def damaged_files(
    root: Root, files: Sequence[StoredFile], advance: Callable[[int], None]
) -> Iterator[Damage]:
    """Read all these files, several at once, and yield what is damaged.

    advance: told the bytes that were read or need no reading; one call at a time, from the readers'
    threads.
    """
    lock = threading.Lock()

    def advance_alone(count: int) -> None:
        with lock:
            advance(count)

    for damage in _each(lambda file: _damage(root, file, advance_alone), files):
        if damage is not None:
            yield damage


Item = TypeVar("Item")
Found = TypeVar("Found")


def _each(look: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
    pool = ThreadPoolExecutor(READERS)
    try:
        yield from pool.map(look, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_manifest(
    root: Root, stage: str, key: str, is_folder: bool = False
) -> Manifest | Damage | None:
    try:
        checked_name(f"{stage}/{key}")
        if is_folder:
            raise unreadable_manifest(root, stage, key, "it is a folder: move it elsewhere")
        return read_manifest(root, stage, key)
    except (CorruptFileError, ValueError) as error:
        return Damage(stage, key, str(error))
    except (InputError, OSError) as error:
        if root.local(f"manifests/{stage}") is None:
            raise  # a server, of which nothing more can be read
        return Damage(stage, key, f"manifests/{stage}/{key}.json cannot be read ({error})")


def _damage(root: Root, file: StoredFile, advance: Callable[[int], None]) -> Damage | None:
    if _fault(root, file, advance) is None or not _still_wanted(root, file):
        return None
    # Read once more, so that a fault of the network is not taken for one of the file.
    fault = _fault(root, file, lambda _: None)
    return None if fault is None else Damage(file.stage, file.key, fault)


def _still_wanted(root: Root, file: StoredFile) -> bool:
    """Whether the unit has not been taken back and made anew in the meantime."""
    manifest = _read_manifest(root, file.stage, file.key)
    return not isinstance(manifest, Manifest) or file.rel.startswith(f"{manifest.attempt}/")


def _fault(root: Root, file: StoredFile, advance: Callable[[int], None]) -> str | None:
    """What is wrong with a file, None if nothing is."""
    expected, left = file.expected, file.expected["bytes"]
    digest, length = hashlib.sha256(), 0
    try:
        for block in root.blocks(file.rel):
            digest.update(block)
            length += len(block)
            advance(min(len(block), left))
            left -= min(len(block), left)
    except ConnectionError:
        raise  # nothing more can be read
    except FileNotFoundError:
        return f"{root.url_of(file.rel)} is missing"
    except (InputError, OSError) as error:
        if isinstance(error, InputError) and root.local(file.rel) is None:
            raise  # of the server, which says the same about every file
        return f"{root.url_of(file.rel)} cannot be read ({error})"
    finally:
        advance(left)
    if (length, digest.hexdigest()) == (expected["bytes"], expected["sha256"]):
        return None
    return (
        f"{root.url_of(file.rel)}: expected {expected['bytes']} bytes with sha256 "
        f"{expected['sha256']}, got {length} bytes with sha256 {digest.hexdigest()}"
    )
