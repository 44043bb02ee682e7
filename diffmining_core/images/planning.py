"""What of a dataset is new: its listing against the shards known from before.

A source lists either rows, each with a fingerprint (folders, manifests), or parts: files of images
that stay as they are or are replaced whole (tars, Parquet files with the images in them).
"""

from __future__ import annotations

import hashlib
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.images.shards import FoundImage, IndexPlan, KeptShard, KnownShard, NewShard

Hashes = npt.NDArray[np.bytes_]
"""16 bytes per row, S16."""

Item = TypeVar("Item")

HASH_BYTES = 16
BATCH = 10_000
"""Rows that are handled at once."""

_COLUMNS = tuple(field.name for field in fields(FoundImage))


class Listing:
    """The rows of a source, on disk, in an order that mixes the labels; 16 bytes each in memory.

    In: each image with its name in the source, which decides its place in the order, so that the
    same dataset elsewhere, listed in another order, is cut into the same shards. Rows that occur
    more than once count once; `repeated` is how many were left out.
    """

    def __init__(self, named: Iterable[tuple[str, FoundImage]]) -> None:
        with _room_on_disk():
            # A database without a name is a temporary file that goes with its connection.
            self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._rows.close)
        hashes = bytearray()
        with _room_on_disk():
            self._rows.execute("PRAGMA journal_mode = OFF")
            self._rows.execute(f"CREATE TABLE found (place, hash, {', '.join(_COLUMNS)})")
            self._rows.execute("BEGIN")
            marks = ", ".join("?" * (2 + len(_COLUMNS)))
            for batch in _batches(_spooled(named, hashes), BATCH):
                self._rows.executemany(f"INSERT INTO found VALUES ({marks})", batch)
            self._rows.execute("COMMIT")
        listed = np.frombuffer(bytes(hashes), f"S{HASH_BYTES}")
        self.hashes: Hashes = np.unique(listed)
        self.repeated = len(listed) - len(self.hashes)

    @cached_property
    def digest(self) -> str:
        """Sha256 hex of the rows, whatever the order of the listing."""
        return hashlib.sha256(self.hashes.tobytes()).hexdigest()

    def images_without(self, known: Hashes) -> Iterator[FoundImage]:
        """The images whose hashes are not among `known`, which are sorted."""
        rows = self._rows.execute(
            f"SELECT hash, {', '.join(_COLUMNS)} FROM found ORDER BY place, hash"
        )
        before = None
        with _room_on_disk():
            while batch := rows.fetchmany(BATCH):
                is_known = _are_in(np.array([row[0] for row in batch], f"S{HASH_BYTES}"), known)
                for row, known_row in zip(batch, is_known, strict=True):
                    if not known_row and row[0] != before:
                        yield FoundImage(*row[1:])
                    before = row[0]


def plan_rows(listing: Listing, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
    """Keep each known shard of which any row still holds; cut the other rows into new shards.

    A row of two known shards counts in the one of which more rows hold.
    """
    shards = [shard for shard in known if shard.part is None]
    hashes = [_table_hashes(shard.rows()) for shard in shards]
    keep, kept_hashes = _kept(shards, hashes, listing.hashes)
    return IndexPlan(
        keep=keep,
        new=(
            NewShard(None, images)
            for images in _batches(listing.images_without(kept_hashes), shard_rows)
        ),
        images=len(listing.hashes) - len(kept_hashes),
    )


def _kept(
    shards: Sequence[KnownShard], hashes: Sequence[Hashes], listed: Hashes
) -> tuple[list[KeptShard], Hashes]:
    """The shards that are kept, and the hashes, sorted, of the rows that hold in them."""
    holding = [int(_are_in(own, listed).sum()) for own in hashes]
    best_first = sorted(range(len(shards)), key=lambda i: (-holding[i], shards[i].key))
    best_first = [i for i in best_first if holding[i]]
    if not best_first:
        return [], np.empty(0, f"S{HASH_BYTES}")
    rows = np.concatenate([hashes[i] for i in best_first])
    unique, first = np.unique(rows, return_index=True)
    holds = _are_in(unique, listed)
    counts = np.zeros(len(rows), bool)
    counts[first[holds]] = True
    keep = []
    start = 0
    for i in best_first:
        own = counts[start : start + len(hashes[i])]
        start += len(hashes[i])
        if own.any():
            keep.append(KeptShard(shards[i].key, tuple(np.flatnonzero(~own).tolist())))
    return keep, unique[holds]


@dataclass(frozen=True)
class Part:
    """A file that holds images; `fingerprint`, without spaces, changes when the file does."""

    url: str
    fingerprint: str


@dataclass(frozen=True)
class Piece:
    """Images `start` to `stop` (exclusive) of a part; `is_last`: it has no more."""

    part: Part
    start: int
    stop: int
    is_last: bool

    def __str__(self) -> str:
        end = "end" if self.is_last else "more"
        return f"{self.part.url} {self.part.fingerprint} {self.start}-{self.stop} {end}"

    @classmethod
    def parse(cls, text: str) -> Piece:
        """The piece that has this text."""
        url, fingerprint, span, end = text.rsplit(" ", 3)
        start, stop = span.split("-")
        return cls(Part(url, fingerprint), int(start), int(stop), end == "end")


def parts_digest(kind: str, parts: Iterable[Part]) -> str:
    """Sha256 hex of a kind of source and its files as listed, none of which is opened."""
    lines = sorted(f"{part.url} {part.fingerprint}" for part in parts)
    return hashlib.sha256("\n".join([kind, *lines]).encode()).hexdigest()


class PartSource:
    """A dataset of parts, of which only those that are new are opened to plan its shards.

    A subclass says its `kind` and how the images of a part are found.
    """

    kind: ClassVar[str]

    def __init__(self, url: str, parts: Sequence[Part]) -> None:
        self.url = url
        self.parts = parts

    @property
    def digest(self) -> str:
        """Of the names, sizes and ETags or times of the parts."""
        return parts_digest(self.kind, self.parts)

    def images(self) -> Iterator[FoundImage]:
        """Every image, part by part."""
        return (image for part in self.parts for image in self.images_of(part))

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """Only parts that are new are opened."""
        return plan_parts(self.parts, known, shard_rows, self.images_of)

    def images_of(self, part: Part) -> Iterator[FoundImage]:
        """The images of one part, in its order."""
        raise NotImplementedError


def plan_parts(
    parts: Sequence[Part],
    known: Sequence[KnownShard],
    shard_rows: int,
    images_of: Callable[[Part], Iterator[FoundImage]],
) -> IndexPlan:
    """Keep the shards of parts that are unchanged; cut each new part, in its own order.

    A part is opened only if the known shards do not make up the whole of it. One that cannot be
    read stops no other: going through `new` raises InputError in the end.
    """
    pieces: dict[Part, list[tuple[Piece, str]]] = {part: [] for part in parts}
    for shard in known:
        piece = None if shard.part is None else Piece.parse(shard.part)
        if piece and piece.part in pieces:
            pieces[piece.part].append((piece, shard.key))
    whole = {part: _whole(own) for part, own in pieces.items()}
    return IndexPlan(
        keep=[KeptShard(key, ()) for keys in whole.values() for key in keys],
        new=_new_pieces([part for part in parts if not whole[part]], shard_rows, images_of),
        images=None if any(not keys for keys in whole.values()) else 0,
    )


def _whole(pieces: Iterable[tuple[Piece, str]]) -> list[str]:
    """The keys of shards that make up a whole part, in its order; none if any piece is missing."""
    from_here: dict[int, list[str]] = {}  # by start, the keys of pieces up to the end
    for piece, key in sorted(pieces, key=lambda own: (-own[0].start, own[1])):
        if piece.is_last:
            from_here[piece.start] = [key]
        elif piece.stop in from_here:
            from_here[piece.start] = [key, *from_here[piece.stop]]
    return from_here.get(0, [])


def _new_pieces(
    parts: Iterable[Part], shard_rows: int, images_of: Callable[[Part], Iterator[FoundImage]]
) -> Iterator[NewShard]:
    unreadable = []
    for part in parts:
        try:
            yield from _pieces(part, images_of(part), shard_rows)
        except InputError as error:
            unreadable.append(str(error))
    if unreadable:
        raise InputError("; ".join(unreadable))


def _pieces(part: Part, images: Iterator[FoundImage], shard_rows: int) -> Iterator[NewShard]:
    start = 0
    batches = _batches(images, shard_rows)
    batch = next(batches, None)
    while batch is not None:
        after = next(batches, None)
        piece = Piece(part, start, start + len(batch), is_last=after is None)
        yield NewShard(str(piece), batch)
        start, batch = piece.stop, after


@contextmanager
def _room_on_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(
            f"the dataset's listing cannot be kept in the temporary folder ({error}); free some "
            "space, or name another folder in TMPDIR"
        ) from error


def _spooled(
    named: Iterable[tuple[str, FoundImage]], hashes: bytearray
) -> Iterator[tuple[object, ...]]:
    """The rows of the table of a listing; the hash of each is added to `hashes`."""
    for name, image in named:
        row_hash = _row_hash(image.uri, image.label, image.fingerprint, image.declared_size)
        hashes += row_hash
        place = hashlib.sha256(name.encode(errors="replace")).digest()[:HASH_BYTES]
        yield (place, row_hash, *(getattr(image, column) for column in _COLUMNS))


def _table_hashes(table: pa.Table) -> Hashes:
    columns = ("uri", "label", "fingerprint", "declared", "width", "height")
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    hashes = b"".join(
        _row_hash(uri, label, fingerprint, (width, height) if declared else None)
        for uri, label, fingerprint, declared, width, height in rows
    )
    return np.frombuffer(hashes, f"S{HASH_BYTES}")


def _row_hash(uri: str, label: str, fingerprint: str, size: tuple[int, int] | None) -> bytes:
    """16 bytes that tell a row from every other; `size` of a declared image."""
    text = f"{uri}\0{label}\0{fingerprint}\0{size or ''}"
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def _are_in(hashes: Hashes, sorted_hashes: Hashes) -> npt.NDArray[np.bool_]:
    if not len(sorted_hashes):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(sorted_hashes, hashes).clip(max=len(sorted_hashes) - 1)
    are_in: npt.NDArray[np.bool_] = sorted_hashes[places] == hashes
    return are_in


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
