"""The ledger: a unit is done when its manifest is published, and not before.

Data lie at `<stage>/<key>/attempt-<uuid>/<name>`, manifests at `manifests/<stage>/<key>.json`, so
that one listing tells what a stage has done. Readers start from manifests; what an interrupted or
beaten attempt left behind is named by none and never read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, TypedDict
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.store.roots import Root, checked_name, explained
from diffmining_core.store.units import JSON, Unit, canonical_json

RUN_FILE = "run.json"
RUN_FORMAT = 1
BLOCK = 16 * 2**20
"""Bytes held at a time while hashing large files."""

PUBLISH_TRIES = 5


class CorruptFileError(OSError):
    """A stored file is missing or is not what was written."""


class FileRecord(TypedDict):
    """A stored file's length in bytes and the hex sha256 of its content."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The record of a finished unit.

    attempt: folder of the data, relative to the root. files: by name in that folder. counts and
    facts: what the stage says of its result. versions, device, seconds and created (UTC, ISO 8601)
    tell how it came about and decide nothing.
    """

    stage: str
    key: str
    algo: str
    inputs: tuple[str, ...]
    parameters: Mapping[str, JSON]
    attempt: str
    files: Mapping[str, FileRecord]
    counts: Mapping[str, int]
    facts: Mapping[str, JSON]
    versions: Mapping[str, str]
    device: str
    seconds: float
    created: str

    @property
    def unit(self) -> str:
        """The unit's name in messages."""
        return f"{self.stage}/{self.key}"


class Attempt:
    """One try at a unit: a fresh folder to fill, with counts and facts for the manifest.

    Names may hold "/" but never go up; a name is written once.
    """

    def __init__(self, root: Root, unit: Unit) -> None:
        self.root = root
        self.unit = f"{unit.stage}/{unit.key}"
        self.folder = f"{self.unit}/attempt-{uuid4().hex}"
        self.files: dict[str, FileRecord] = {}
        self.counts: dict[str, int] = {}
        self.facts: dict[str, JSON] = {}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Store `data` as file `name`."""
        self._note(name, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self.root.write_new(f"{self.folder}/{name}", data)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Store a table as Parquet, compressed with zstd."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write_bytes(name, buffer.getvalue())

    def write_json(self, name: str, value: JSON) -> None:
        """Store a JSON value; TypeError or ValueError for what JSON cannot hold."""
        self.write_bytes(name, canonical_json(value))

    def write_folder(self, local_dir: Path, prefix: str = "") -> None:
        """Store every file below a local folder under `prefix`, in blocks, whatever its size.

        FileNotFoundError if there is no file.
        """
        paths = sorted(path for path in local_dir.rglob("*") if path.is_file())
        if not paths:
            raise FileNotFoundError(f"{self.unit}: {local_dir} holds no file to store")
        for path in paths:
            inner = path.relative_to(local_dir).as_posix()
            name = f"{prefix}/{inner}" if prefix else inner
            with path.open("rb") as file:
                self._note(name, _record(_blocks(file)))
            self._copy_in(path, f"{self.folder}/{name}")

    def _note(self, name: str, record: FileRecord) -> None:
        if checked_name(name) in self.files:
            raise ValueError(f"{self.unit}: {name} is written twice; a stored file never changes")
        self.files[name] = record

    def _copy_in(self, path: Path, rel: str) -> None:
        with explained(self.root.url):
            if target := self.root.local(rel):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                with target.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                self.root.fs.put_file(str(path), self.root.path_of(rel))


def complete(
    root: Root, unit: Unit, produce: Callable[[Attempt], None], device: str = "cpu"
) -> Manifest:
    """The manifest of `unit`, made with `produce` unless it is published already.

    produce fills an attempt; what it wrote is read back and checked before the manifest makes it a
    result. Of several makers at once the first to publish wins and the others return its manifest.
    device is only recorded.
    """
    if published_one := read_manifest(root, unit.stage, unit.key):
        return published_one
    started = time.monotonic()
    attempt = Attempt(root, unit)
    produce(attempt)
    _verify(root, attempt.folder, attempt.files)
    manifest = Manifest(
        stage=unit.stage,
        key=unit.key,
        algo=unit.algo,
        inputs=unit.inputs,
        parameters=unit.parameters,
        attempt=attempt.folder,
        files=attempt.files,
        counts=attempt.counts,
        facts=attempt.facts,
        versions=_versions(),
        device=device,
        seconds=round(time.monotonic() - started, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return _publish(root, manifest)


def _publish(root: Root, manifest: Manifest) -> Manifest:
    """The winner's manifest: this one, or the one that was there first."""
    rel = _manifest_path(manifest.stage, manifest.key)
    body = canonical_json(asdict(manifest))
    for attempt in range(PUBLISH_TRIES):
        root.create_bytes(rel, body)
        # Also after a win: all makers then return the same value, as read from storage.
        if winner := read_manifest(root, manifest.stage, manifest.key):
            return winner
        time.sleep(0.2 * 2**attempt)  # S3 may refuse two at once (409) before either is there
    raise OSError(f"{root.url}: {rel} could not be published in {PUBLISH_TRIES} tries")


def published(root: Root, stage: str) -> set[str]:
    """The keys of the stage's finished units, from one listing."""
    return {
        name.removesuffix(".json")
        for name in root.names(f"manifests/{stage}")
        if name.endswith(".json") and not name.startswith(".")
    }


def read_manifest(root: Root, stage: str, key: str) -> Manifest | None:
    """The manifest of a unit, None if it is not done."""
    rel = _manifest_path(stage, key)
    try:
        return _manifest(root, rel, root.read_bytes(rel))
    except FileNotFoundError:
        return None


def finished(root: Root, stage: str, key: str) -> Manifest:
    """The manifest of a unit that is known to be published; LookupError if it is not there."""
    if manifest := read_manifest(root, stage, key):
        return manifest
    raise LookupError(f"{root.url_of(_manifest_path(stage, key))} is gone; run again to make it")


def read_manifests(root: Root, stage: str) -> list[Manifest]:
    """The manifests of all finished units of a stage, in the order of their keys."""
    rels = [_manifest_path(stage, key) for key in sorted(published(root, stage))]
    return [_manifest(root, rel, data) for rel, data in zip(rels, root.read_all(rels), strict=True)]


def _manifest_path(stage: str, key: str) -> str:
    return f"manifests/{stage}/{key}.json"


def _manifest(root: Root, rel: str, data: bytes) -> Manifest:
    try:
        content = json.loads(data)
        return Manifest(**{**content, "inputs": tuple(content["inputs"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptFileError(
            f"{root.url_of(rel)} is no manifest that this version can read ({error}); remove it, "
            "and the next run makes the unit again"
        ) from error


def verify(root: Root, manifest: Manifest) -> None:
    """Read all files of a finished unit; CorruptFileError names the first that has changed."""
    _verify(root, manifest.attempt, manifest.files)


def _verify(root: Root, folder: str, files: Mapping[str, FileRecord]) -> None:
    for name, expected in files.items():
        rel = f"{folder}/{name}"
        try:
            came = _record(_stored_blocks(root, rel))
        except FileNotFoundError as error:
            raise CorruptFileError(f"{root.url_of(rel)} is missing; {_REMEDY}") from error
        _check(root, rel, expected, came)


_REMEDY = "remove the manifest of this unit below manifests/ and run again to make it anew"


def _check(root: Root, rel: str, expected: FileRecord, came: FileRecord) -> None:
    if came != expected:
        raise CorruptFileError(
            f"{root.url_of(rel)} is corrupt: expected {expected['bytes']} bytes with sha256 "
            f"{expected['sha256']}, got {came['bytes']} bytes with sha256 {came['sha256']}; "
            f"{_REMEDY}"
        )


def _record(blocks: Iterator[bytes]) -> FileRecord:
    digest, length = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        length += len(block)
    return {"bytes": length, "sha256": digest.hexdigest()}


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(BLOCK), b"")


def _stored_blocks(root: Root, rel: str) -> Iterator[bytes]:
    path = root.path_of(rel)
    with explained(root.url):
        size = root.fs.size(path)
        for start in range(0, size, BLOCK):
            yield root.fs.cat_file(path, start=start, end=min(start + BLOCK, size))


def read_bytes(root: Root, manifest: Manifest, name: str) -> bytes:
    """The content of one file of a finished unit, checked; CorruptFileError if it has changed."""
    return read_files(root, manifest, [name])[0]


def read_files(root: Root, manifest: Manifest, names: Sequence[str]) -> list[bytes]:
    """The contents of several files of a finished unit, checked like one."""
    rels = [_stored(manifest, name) for name in names]
    try:
        contents = root.read_all(rels)
    except FileNotFoundError as error:
        raise CorruptFileError(f"{error} is missing; {_REMEDY}") from error
    for name, rel, data in zip(names, rels, contents, strict=True):
        _check(root, rel, manifest.files[name], _record(iter([data])))
    return contents


def read_table(root: Root, manifest: Manifest, name: str) -> pa.Table:
    """A table written with `Attempt.write_table`."""
    return pq.read_table(pa.BufferReader(read_bytes(root, manifest, name)))


def read_json(root: Root, manifest: Manifest, name: str) -> JSON:
    """A value written with `Attempt.write_json`."""
    return json.loads(read_bytes(root, manifest, name))


def file_url(root: Root, manifest: Manifest, name: str) -> str:
    """The address of one file of a finished unit: an absolute local path, or an fsspec URL."""
    return root.url_of(_stored(manifest, name))


def _stored(manifest: Manifest, name: str) -> str:
    if name not in manifest.files:
        raise KeyError(f"{manifest.unit} has no file {name!r}; it has {sorted(manifest.files)}")
    return f"{manifest.attempt}/{name}"


def local_folder(root: Root, manifest: Manifest, prefix: str) -> Path:
    """A local folder with the unit's files under `prefix`.

    The stored folder itself on a local root; else a copy in the user's cache folder, downloaded
    once and checked. Do not write to it.
    """
    names = _names_under(manifest, prefix)
    if folder := root.local(f"{manifest.attempt}/{prefix}"):
        return folder
    cached = _cache_folder() / manifest.attempt / prefix
    if not cached.exists():
        with explained(str(cached)):
            _download(root, manifest, names, cached)
    return cached


def _names_under(manifest: Manifest, prefix: str) -> dict[str, str]:
    """Path below `prefix` -> name in the manifest."""
    start = f"{checked_name(prefix)}/"
    names = {name.removeprefix(start): name for name in manifest.files if name.startswith(start)}
    if not names:
        raise KeyError(f"{manifest.unit} has no file under {prefix!r}")
    return names


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmining"


def _download(root: Root, manifest: Manifest, names: Mapping[str, str], folder: Path) -> None:
    """Fill `folder`, which appears with all its files or not at all."""
    aside = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        for inner, name in names.items():
            target = aside / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            rel = _stored(manifest, name)
            with target.open("wb") as file:
                _check(root, rel, manifest.files[name], _record(_copied(root, rel, file)))
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copied(root: Root, rel: str, file: BinaryIO) -> Iterator[bytes]:
    for block in _stored_blocks(root, rel):
        file.write(block)
        yield block


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("diffmining", "diffusers", "numpy", "pyarrow", "torch", "transformers", "zarr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a GPU machine may have only the model side
            continue
    return found


def open_run(root: Root, identity: Mapping[str, str]) -> None:
    """Claim a fresh root for the run with this identity, or check that it is the same run's.

    identity: a few names and values, such as the dataset's folder, that must not mix at one root.
    InputError if the root holds another run's results, or files that are no run's.
    """
    stored = _read_run(root)
    if stored is None:
        _check_fresh(root)
        root.create_bytes(RUN_FILE, canonical_json({"format": RUN_FORMAT, "identity": identity}))
        stored = _read_run(root)
    if stored is None or stored["format"] != RUN_FORMAT:
        raise InputError(
            f"{root.url_of(RUN_FILE)} is of a format that this version does not know; give another "
            "root, or use the version that wrote it"
        )
    _check_same_run(root, stored["identity"], identity)


def _read_run(root: Root) -> dict[str, Any] | None:
    try:
        data = root.read_bytes(RUN_FILE)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"format", "identity"} <= content.keys():
        return {"format": None, "identity": {}}
    return content


def _check_fresh(root: Root) -> None:
    # A new file system has lost+found; desktops and our own unfinished writes leave dot files.
    foreign = [n for n in root.names() if n != "lost+found" and not n.startswith(".")]
    if foreign and RUN_FILE not in foreign:  # else another process has just claimed it
        raise InputError(
            f"{root.url} holds files that are no run's results ({_some(foreign)}); give an empty "
            "or a new folder"
        )


def _check_same_run(root: Root, stored: Mapping[str, str], asked: Mapping[str, str]) -> None:
    names = sorted(n for n in stored.keys() | asked.keys() if stored.get(n) != asked.get(n))
    if names:
        holds = " and ".join(f"{name} {stored.get(name, '(none)')}" for name in names)
        asks = " and ".join(f"{name} {asked.get(name, '(none)')}" for name in names)
        raise InputError(
            f"root {root.url} holds the results of {holds}; this run asks for {asks}; give another "
            "root"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
