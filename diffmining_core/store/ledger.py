"""The ledger: a unit is done when its manifest is published, and not before.

Data lie at `<stage>/<key>/attempt-<uuid>/<name>`, manifests at `manifests/<stage>/<key>.json`, so
that one listing tells what a stage has done. Readers start from manifests; what an interrupted or
beaten attempt left behind is named by none and never read. Nothing is overwritten: a unit that has
to be made again is taken back first, its manifest kept at `retracted/<stage>/<key>/<uuid>.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, BinaryIO, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from diffmining_core.errors import InputError
from diffmining_core.store.caches import cache_folder, filled_aside
from diffmining_core.store.roots import BLOCK, Entry, Root, checked_name, explained
from diffmining_core.store.units import JSON, Unit, canonical_json

MANIFEST_FORMAT: Literal[1] = 1

PUBLISH_TRIES = 5


class CorruptFileError(OSError):
    """A stored file of a finished unit is missing or is not what was written."""

    def __init__(self, message: str, stage: str, key: str) -> None:
        super().__init__(message, stage, key)  # all of them, so that it can be pickled
        self.message, self.stage, self.key = message, stage, key

    def __str__(self) -> str:
        return self.message


_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@with_config(_STRICT)
class FileRecord(TypedDict):
    """A stored file's length in bytes and the hex sha256 of its content."""

    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(_STRICT)
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
    counts: Mapping[str, Annotated[int, Field(ge=-(2**63), lt=2**63)]]
    facts: Mapping[str, JSON]
    versions: Mapping[str, str]
    device: str
    seconds: float
    created: str
    format: Literal[1] = MANIFEST_FORMAT

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
            self.write_file(f"{prefix}/{inner}" if prefix else inner, path)

    def write_file(self, name: str, path: Path) -> None:
        """Store a local file as `name`, in blocks, whatever its size."""
        with path.open("rb") as file:
            self._note(name, _record(_blocks(file)))
        self.root.write_file(f"{self.folder}/{name}", path)

    def _note(self, name: str, record: FileRecord) -> None:
        if checked_name(name) in self.files:
            raise ValueError(f"{self.unit}: {name} is written twice; a stored file never changes")
        self.files[name] = record


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
    _read_back(root, unit, attempt)
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


def _read_back(root: Root, unit: Unit, attempt: Attempt) -> None:
    """OSError, which may pass, if storage does not hold what was just written."""
    try:
        _verify(root, (unit.stage, unit.key), attempt.folder, attempt.files)
    except CorruptFileError as error:
        raise OSError(f"storage did not keep what was just written: {error}") from error


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


def is_intact(root: Root, stage: str, key: str) -> bool:
    """Whether a unit, read once more, is as its manifest says; True also if it is not there."""
    try:
        if manifest := read_manifest(root, stage, key):
            verify(root, manifest)
    except CorruptFileError:
        return False
    return True


def retract(root: Root, stage: str, key: str) -> None:
    """Take a published unit back, so that the next run makes it again; its data stay until gc.

    Of two that find one unit damaged, the slower may take back what the faster has made anew: that
    costs the work once more, and no result.
    """
    rel = _manifest_path(stage, key)
    try:
        root.write_new(f"retracted/{stage}/{key}/{uuid4().hex}.json", root.read_bytes(rel))
    except FileNotFoundError:
        root.remove(rel)  # a link that leads nowhere
        return
    except IsADirectoryError as error:  # not ours, so not removed
        raise InputError(
            f"{root.url_of(rel)} is a folder, but a manifest belongs there; move it elsewhere and "
            "run the same command again"
        ) from error
    root.remove(rel)
    if root.exists(rel):  # S3's answer about several files at once hides a refusal
        raise InputError(
            f"{root.url_of(rel)} must be removed, which these credentials may not do; start again "
            "once with credentials that may delete, such as an operator's"
        )


def stages(root: Root) -> list[str]:
    """The stages of which units have been published, by name."""
    return [entry.name for entry in root.entries("manifests") if entry.is_folder]


def manifest_entries(root: Root, stage: str) -> dict[str, Entry]:
    """What is stored in place of each manifest of a stage, by key, from one listing."""
    return {
        entry.name.removesuffix(".json"): entry
        for entry in root.entries(f"manifests/{stage}")
        if entry.name.endswith(".json") and not entry.name.startswith(".")
    }


def published(root: Root, stage: str) -> set[str]:
    """The keys of the stage's finished units, from one listing."""
    return {key for key, entry in manifest_entries(root, stage).items() if not entry.is_folder}


def read_manifest(root: Root, stage: str, key: str) -> Manifest | None:
    """The manifest of a unit, None if it is not done; CorruptFileError if it cannot be used."""
    try:
        return _manifest(root, stage, key, root.read_bytes(_manifest_path(stage, key)))
    except FileNotFoundError:
        if (path := root.local(_manifest_path(stage, key))) and path.is_symlink():
            fault = "it is a link that leads nowhere"
            raise unreadable_manifest(root, stage, key, fault) from None
        return None
    except IsADirectoryError as error:
        raise unreadable_manifest(root, stage, key, "it is a folder: move it elsewhere") from error


def finished(root: Root, stage: str, key: str) -> Manifest:
    """The manifest of a unit that is known to be published; LookupError if it is not there."""
    if manifest := read_manifest(root, stage, key):
        return manifest
    raise LookupError(f"{root.url_of(_manifest_path(stage, key))} is gone; run again to make it")


def read_manifests(root: Root, stage: str, wanted: Iterable[str] | None = None) -> list[Manifest]:
    """The manifests of these units of a stage, or of all finished ones in the order of their keys.

    Read at once where the storage allows it. FileNotFoundError if a wanted one is not there,
    CorruptFileError if one cannot be used.
    """
    keys = sorted(published(root, stage)) if wanted is None else list(wanted)
    try:
        contents = root.read_all([_manifest_path(stage, key) for key in keys])
    except IsADirectoryError:
        return [finished(root, stage, key) for key in keys]  # which names the one
    except FileNotFoundError:
        for key in keys:
            read_manifest(root, stage, key)  # which names a link that leads nowhere
        raise
    return [_manifest(root, stage, key, data) for key, data in zip(keys, contents, strict=True)]


def _manifest_path(stage: str, key: str) -> str:
    return f"manifests/{stage}/{key}.json"


_stored_manifest = TypeAdapter(Manifest)


def _manifest(root: Root, stage: str, key: str, data: bytes) -> Manifest:
    """The manifest in `data`; CorruptFileError for anything else that may be stored there."""
    try:
        manifest = _stored_manifest.validate_json(data)
        _check_unit(manifest, stage, key)
    except ValueError as error:
        raise unreadable_manifest(root, stage, key, _fault(error)) from error
    return manifest


def _check_unit(manifest: Manifest, stage: str, key: str) -> None:
    """ValueError if it belongs to another unit, or names files outside its own attempt."""
    unit = Unit(manifest.stage, manifest.algo, manifest.inputs, manifest.parameters)
    if (manifest.stage, manifest.key) != (stage, key):
        raise ValueError(f"it belongs to {manifest.unit!r}")
    if unit.key != key:
        raise ValueError(f"its algo, inputs and parameters belong to {unit.key}")
    if not re.fullmatch(rf"{re.escape(manifest.unit)}/attempt-[0-9a-f]{{32}}", manifest.attempt):
        raise ValueError(f"its attempt is {manifest.attempt!r}")
    for name in manifest.files:
        checked_name(name)
    datetime.fromisoformat(manifest.created)


def _fault(error: ValueError) -> str:
    """The first thing that is wrong with a manifest, without the values that it holds."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where!r}: {first['msg']}" if where else first["msg"]


def unreadable_manifest(root: Root, stage: str, key: str, fault: str) -> CorruptFileError:
    """The error about a manifest that cannot be used."""
    return CorruptFileError(
        f"{root.url_of(_manifest_path(stage, key))} is not a valid manifest ({fault}); {_REMEDY}",
        stage,
        key,
    )


def verify(root: Root, manifest: Manifest) -> None:
    """Read all files of a finished unit; CorruptFileError names the first that has changed."""
    _verify(root, (manifest.stage, manifest.key), manifest.attempt, manifest.files)


def _verify(
    root: Root, unit: tuple[str, str], folder: str, files: Mapping[str, FileRecord]
) -> None:
    for name, expected in files.items():
        rel = f"{folder}/{name}"
        try:
            came = _record(root.blocks(rel))
        except FileNotFoundError as error:
            raise missing_file(root, unit, rel) from error
        _check(root, unit, rel, expected, came)


_REMEDY = "run again to make its unit anew"


def missing_file(root: Root, unit: tuple[str, str], rel: str) -> CorruptFileError:
    """The error about a stored file of a unit (stage, key) that is not there."""
    return CorruptFileError(f"{root.url_of(rel)} is missing; {_REMEDY}", *unit)


def _check(
    root: Root, unit: tuple[str, str], rel: str, expected: FileRecord, came: FileRecord
) -> None:
    if came != expected:
        raise CorruptFileError(
            f"{root.url_of(rel)} is corrupt: expected {expected['bytes']} bytes with sha256 "
            f"{expected['sha256']}, got {came['bytes']} bytes with sha256 {came['sha256']}; "
            f"{_REMEDY}",
            *unit,
        )


def _record(blocks: Iterator[bytes]) -> FileRecord:
    digest, length = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        length += len(block)
    return {"bytes": length, "sha256": digest.hexdigest()}


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(BLOCK), b"")


def read_bytes(root: Root, manifest: Manifest, name: str) -> bytes:
    """The content of one file of a finished unit, checked; CorruptFileError if it has changed."""
    return read_files(root, manifest, [name])[0]


def read_files(root: Root, manifest: Manifest, names: Sequence[str]) -> list[bytes]:
    """The contents of several files of a finished unit, checked like one.

    A file that is not what it was is read once more: it may have been cut short on the way.
    """
    rels, unit = [_stored(manifest, name) for name in names], (manifest.stage, manifest.key)
    try:
        contents = root.read_all(rels)
    except FileNotFoundError as error:
        raise CorruptFileError(f"{error} is missing; {_REMEDY}", *unit) from error
    for place, (name, rel) in enumerate(zip(names, rels, strict=True)):
        expected = manifest.files[name]
        if _record(iter([contents[place]])) != expected:
            contents[place] = root.read_bytes(rel)
            _check(root, unit, rel, expected, _record(iter([contents[place]])))
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
    once. Either is checked: CorruptFileError. Do not write to it.
    """
    names = _names_under(manifest, prefix)
    if folder := root.local(f"{manifest.attempt}/{prefix}"):
        files = {name: manifest.files[name] for name in names.values()}
        _verify(root, (manifest.stage, manifest.key), manifest.attempt, files)
        return folder
    cached = cache_folder() / manifest.attempt / prefix
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


def _download(root: Root, manifest: Manifest, names: Mapping[str, str], folder: Path) -> None:
    """Fill `folder`, which appears with all its files or not at all."""
    unit = manifest.stage, manifest.key
    with filled_aside(folder) as aside:
        for inner, name in names.items():
            target = aside / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            rel = _stored(manifest, name)
            try:
                with target.open("wb") as file:
                    came = _record(_copied(root, rel, file))
            except FileNotFoundError as error:
                raise missing_file(root, unit, rel) from error
            _check(root, unit, rel, manifest.files[name], came)


def _copied(root: Root, rel: str, file: BinaryIO) -> Iterator[bytes]:
    for block in root.blocks(rel):
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
