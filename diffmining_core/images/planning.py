"""What of a dataset is new: its listing against the shards known from before.

A source lists either rows, each with a fingerprint (folders, manifests), or parts: files of images
that stay as they are or are replaced whole (tars, Parquet files with the images in them).

The rows of one image stay together: they are told from other images' as one, so that an image that
gets or loses a label is a new image with all its labels. Notes (boxes, details) are no part of what
tells a row from others: where they are corrected, the shard is published anew with the same images.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.images.shard_image import Box
from diffmining_core.images.shards import (
    FoundImage,
    IndexPlan,
    KeptShard,
    KnownShard,
    NewShard,
    Notes,
    boxes_of,
)
from diffmining_core.images.tally import NAMED, Tally
from diffmining_core.secrets import cleaned

Hashes = npt.NDArray[np.bytes_]
"""16 bytes per row, S16."""

NoteHashes = npt.NDArray[np.uint64]
"""One per row, 0 where there are no notes."""

Item = TypeVar("Item")

HASH_BYTES = 16
NOTE_BYTES, NOTE_TYPE = 8, ">u8"  # in the order in which the database sorts bytes
BATCH = 10_000
"""Rows that are handled at once."""

REPEATED = "listed more than once; it counts once"

_COLUMNS = tuple(field.name for field in fields(FoundImage))
"""The boxes come last."""


class Listing:
    """The rows of a source, on disk, in an order that mixes the labels; 24 bytes each in memory.

    In: each image under each of its labels, with its name in the source, which decides its place in
    the order, so that the same dataset elsewhere, listed in another order, is cut into the same
    shards. Rows of one name are those of one image. Rows that occur more than once count once.
    left_out: the tally that `named` fills while it is read; repeated rows are added to it. hashes:
    of the rows, sorted; notes: hashes of their notes.
    """

    def __init__(
        self, named: Iterable[tuple[str, FoundImage]], left_out: Tally | None = None
    ) -> None:
        self.left_out = Tally() if left_out is None else left_out
        with room_on_disk():
            # A database without a name is a temporary file that goes with its connection.
            self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._rows.close)
        spool = _Spool()
        with room_on_disk():
            self._rows.execute("PRAGMA journal_mode = OFF")
            self._rows.execute(f"CREATE TABLE found (place, hash, noted, {', '.join(_COLUMNS)})")
            self._rows.execute("BEGIN")
            marks = ", ".join("?" * (3 + len(_COLUMNS)))
            for batch in _batches(spool.rows(named), BATCH):
                self._rows.executemany(f"INSERT INTO found VALUES ({marks})", batch)
            self._rows.execute("COMMIT")
        self.hashes, self.notes, repeated = spool.told_apart()
        if repeated:
            names = map(self._name_of, list(dict.fromkeys(repeated))[:NAMED])
            self.left_out.add(REPEATED, *names, count=len(repeated))

    def _name_of(self, row: bytes) -> str:
        """The name of the image of a row with this hash."""
        query = "SELECT uri FROM found WHERE hash = ? LIMIT 1"
        (uri,) = self._rows.execute(query, (row,)).fetchone()
        return str(uri).rpartition("/")[2]

    @cached_property
    def digest(self) -> str:
        """Sha256 hex of the rows, their notes and what is left out, whatever their order."""
        digest = hashlib.sha256(self.hashes.tobytes())
        if self.notes.any():
            digest.update(self.notes.tobytes())
        if self.left_out.counts:
            digest.update(json.dumps(sorted(self.left_out.counts.items())).encode())
        return digest.hexdigest()

    def images_without(self, known: Hashes) -> Iterator[list[FoundImage]]:
        """The images, each under all its labels, whose hashes are not among `known`, sorted."""
        rows = self._rows.execute(
            f"SELECT place, hash, {', '.join(_COLUMNS)} FROM found ORDER BY place, hash, noted"
        )
        with room_on_disk():
            for images in _batches(_rows_by_image(rows), BATCH):
                first = [_hashes_of_image(list(image))[0] for image in images]
                is_known = _are_in(np.array(first, f"S{HASH_BYTES}"), known)
                for image, known_image in zip(images, is_known, strict=True):
                    if not known_image:
                        yield [_read_row(row) for row in image.values()]

    def notes_of(self, wanted: Iterable[bytes]) -> dict[bytes, tuple[str | None, tuple[Box, ...]]]:
        """The details and boxes of rows by their own hashes."""
        with room_on_disk():
            self._rows.execute("CREATE INDEX IF NOT EXISTS by_hash ON found (hash)")
            query = "SELECT detail, boxes FROM found WHERE hash = ? ORDER BY noted LIMIT 1"
            found = {row: self._rows.execute(query, (row,)).fetchone() for row in wanted}
        return {row: (detail, _read_boxes(boxes)) for row, (detail, boxes) in found.items()}


class _Spool:
    """The rows of a listing on their way to disk, and what of them stays in memory."""

    def __init__(self) -> None:
        self.places = bytearray()
        self.hashes = bytearray()
        self.notes = bytearray()

    def rows(self, named: Iterable[tuple[str, FoundImage]]) -> Iterator[tuple[object, ...]]:
        """The rows of the table."""
        for name, image in named:
            place = _place(name, image.uri)
            row = _row_hash(image.uri, image.label, image.fingerprint, image.declared_size)
            noted = _notes_hash(image.detail, image.boxes)
            self.places += place
            self.hashes += row
            self.notes += noted
            values = [getattr(image, column) for column in _COLUMNS[:-1]]
            yield (place, row, noted, *values, json.dumps(image.boxes) if image.boxes else None)

    def told_apart(self) -> tuple[Hashes, NoteHashes, list[bytes]]:
        """The rows' hashes, sorted, those of their notes, and those of rows that were repeated."""
        places = np.frombuffer(bytes(self.places), f"S{HASH_BYTES}")
        hashes = np.frombuffer(bytes(self.hashes), f"S{HASH_BYTES}")
        notes = np.frombuffer(bytes(self.notes), NOTE_TYPE)
        rows = np.lexsort((notes, hashes))
        is_repeated = hashes[rows[1:]] == hashes[rows[:-1]]
        repeated = [_whole_hash(row) for row in hashes[rows[1:][is_repeated]]]
        rows = np.delete(rows, np.flatnonzero(is_repeated) + 1)  # the first notes count
        hashes = hashes[rows]
        for image in _several(places[rows]):
            hashes[image] = _hashes_of_image([_whole_hash(row) for row in hashes[image]])
        order = np.argsort(hashes)
        return hashes[order], notes[rows][order], repeated


def _rows_by_image(rows: sqlite3.Cursor) -> Iterator[dict[bytes, Sequence[Any]]]:
    """The rows of each image by their own hashes, those that are repeated once."""
    for _, of_image in groupby(rows, key=lambda row: row[0]):
        image: dict[bytes, Sequence[Any]] = {}
        for row in of_image:
            image.setdefault(row[1], row[2:])
        yield image


def _read_row(row: Sequence[Any]) -> FoundImage:
    return replace(FoundImage(*row[:-1]), boxes=_read_boxes(row[-1]))


def _read_boxes(text: str | None) -> tuple[Box, ...]:
    return boxes_of(json.loads(text)) if text else ()


def _several(places: Hashes) -> Iterator[npt.NDArray[np.intp]]:
    """The rows of each image that has several, by the places of all rows."""
    order = np.argsort(places)
    starts = np.flatnonzero(np.r_[True, places[order][1:] != places[order][:-1]])
    ends = np.r_[starts[1:], len(order)]
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield order[start:end]


def plan_rows(listing: Listing, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
    """Keep each known shard of which any row still holds; cut the other rows into new shards.

    A row of two known shards counts in the one of which more rows hold.
    """
    shards = [shard for shard in known if shard.part is None]
    rows = [_TableRows.of(shard.rows()) for shard in shards]
    keep, kept_hashes = _kept(shards, rows, listing)
    return IndexPlan(
        keep=keep,
        new=(
            NewShard(None, images)
            for images in _shards(listing.images_without(kept_hashes), shard_rows)
        ),
        images=len(listing.hashes) - len(kept_hashes),
        left_out=listing.left_out,
    )


@dataclass(frozen=True)
class _TableRows:
    """The hashes of a shard's rows, and of the notes on them."""

    hashes: Hashes
    notes: NoteHashes

    @classmethod
    def of(cls, table: pa.Table) -> _TableRows:
        hashes = []
        for _, rows in groupby(
            zip(table.column("uri").to_pylist(), _own_hashes(table), strict=True), _first
        ):
            hashes += _hashes_of_image([row for _, row in rows])
        return cls(np.array(hashes, f"S{HASH_BYTES}"), _table_notes(table))

    def holding(self, listing: Listing) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which rows are in the listing, and which of them with the same notes."""
        places = np.searchsorted(listing.hashes, self.hashes).clip(max=len(listing.hashes) - 1)
        holds = _are_in(self.hashes, listing.hashes)
        same = holds & (listing.notes[places] == self.notes) if len(listing.hashes) else holds
        return holds, same


def _kept(
    shards: Sequence[KnownShard], rows: Sequence[_TableRows], listing: Listing
) -> tuple[list[KeptShard], Hashes]:
    """The shards that are kept, and the hashes, sorted, of the rows that hold in them."""
    in_listing = [own.holding(listing) for own in rows]
    score = [(int(holds.sum()), int(same.sum())) for holds, same in in_listing]
    best_first = sorted(
        (i for i in range(len(shards)) if score[i][0]),
        key=lambda i: (-score[i][0], -score[i][1], shards[i].key),
    )
    if not best_first:
        return [], np.empty(0, f"S{HASH_BYTES}")
    hashes = np.concatenate([rows[i].hashes for i in best_first])
    unique, first = np.unique(hashes, return_index=True)
    holds = _are_in(unique, listing.hashes)
    counts = np.zeros(len(hashes), bool)
    counts[first[holds]] = True
    keep = []
    start = 0
    for i in best_first:
        own = counts[start : start + len(rows[i].hashes)]
        start += len(rows[i].hashes)
        if own.any():
            corrected = _corrected(shards[i], np.flatnonzero(own & ~in_listing[i][1]), listing)
            keep.append(KeptShard(shards[i].key, tuple(np.flatnonzero(~own).tolist()), corrected))
    return keep, unique[holds]


def _corrected(
    shard: KnownShard, rows: npt.NDArray[np.intp], listing: Listing
) -> tuple[Notes, ...]:
    """What the listing notes on rows of a shard that has other notes on them."""
    if not len(rows):
        return ()
    own = _own_hashes(shard.rows())
    listed = listing.notes_of(own[row] for row in rows)
    return tuple(Notes(int(row), *listed[own[row]]) for row in rows)


@dataclass(frozen=True)
class Part:
    """A file that holds images; `fingerprint`, without spaces, changes when the file does.

    reading: how it is read where a layout says so, without spaces.
    """

    url: str
    fingerprint: str
    reading: str = ""


@dataclass(frozen=True)
class Piece:
    """Images `start` to `stop` (exclusive) of a part; `is_last`: it has no more."""

    part: Part
    start: int
    stop: int
    is_last: bool

    def __str__(self) -> str:
        end = "end" if self.is_last else "more"
        part = self.part
        mark = f"{part.fingerprint}|{part.reading}" if part.reading else part.fingerprint
        return f"{part.url} {mark} {self.start}-{self.stop} {end}"

    @classmethod
    def parse(cls, text: str) -> Piece:
        """The piece that has this text."""
        url, mark, span, end = text.rsplit(" ", 3)
        fingerprint, _, reading = mark.partition("|")
        start, stop = span.split("-")
        return cls(Part(url, fingerprint, reading), int(start), int(stop), end == "end")


def parts_digest(kind: str, parts: Iterable[Part], left_out: Tally) -> str:
    """Sha256 hex of a kind of source and its files as listed, none of which is opened.

    left_out: what lies beside them.
    """
    lines = sorted(f"{part.url} {part.fingerprint} {part.reading}".rstrip() for part in parts)
    if left_out.counts:
        lines.append(json.dumps(sorted(left_out.counts.items())))
    return hashlib.sha256("\n".join([kind, *lines]).encode()).hexdigest()


class PartSource:
    """A dataset of parts, of which only those that are new are opened to plan its shards.

    left_out: what lies beside them. A subclass says its `kind` and how the images of a part are
    found.
    """

    kind: ClassVar[str]

    def __init__(self, url: str, parts: Sequence[Part], left_out: Tally | None = None) -> None:
        self.url = url
        self.parts = parts
        self.left_out = left_out or Tally()

    @property
    def digest(self) -> str:
        """Of the names, sizes and ETags or times of the parts, and what lies beside them."""
        return parts_digest(self.kind, self.parts, self.left_out)

    def images(self) -> Iterator[FoundImage]:
        """Every image, part by part."""
        return (image for part in self.parts for image in self.images_of(part, Tally()))

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """Only parts that are new are opened."""
        plan = plan_parts(self.parts, known, shard_rows, self.images_of)
        plan.left_out.update(self.left_out.as_json())
        return plan

    def images_of(self, part: Part, left_out: Tally) -> Iterator[FoundImage]:
        """The images of one part, in its order; what else is in it is added to `left_out`."""
        raise NotImplementedError


def plan_parts(
    parts: Sequence[Part],
    known: Sequence[KnownShard],
    shard_rows: int,
    images_of: Callable[[Part, Tally], Iterator[FoundImage]],
) -> IndexPlan:
    """Keep the shards of parts that are unchanged; cut each new part, in its own order.

    A part is opened only if the known shards do not make up the whole of it. One that cannot be
    read stops no other: iterating `new` raises InputError at the end. What is left out of a part is
    counted with its last shard, or in the plan's tally if it has none.
    """
    pieces: dict[Part, list[tuple[Piece, str]]] = {part: [] for part in parts}
    for shard in known:
        piece = None if shard.part is None else Piece.parse(shard.part)
        if piece and piece.part in pieces:
            pieces[piece.part].append((piece, shard.key))
    whole = {part: _whole(own) for part, own in pieces.items()}
    new = [part for part in parts if not whole[part]]
    left_out = Tally()
    return IndexPlan(
        keep=[KeptShard(key, ()) for keys in whole.values() for key in keys],
        new=_new_pieces(new, shard_rows, images_of, left_out),
        images=None if new else 0,
        left_out=left_out,
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
    parts: Iterable[Part],
    shard_rows: int,
    images_of: Callable[[Part, Tally], Iterator[FoundImage]],
    left_out: Tally,
) -> Iterator[NewShard]:
    unreadable = []
    for part in parts:
        of_part, is_empty = Tally(), True
        try:
            for piece in _pieces(part, images_of(part, of_part), shard_rows, of_part):
                is_empty = False
                yield piece
            if is_empty:
                left_out.update(of_part.as_json())
        except InputError as error:
            unreadable.append(str(error))
    if unreadable:
        raise InputError("; ".join(unreadable))


def _pieces(
    part: Part, found: Iterator[FoundImage], shard_rows: int, left_out: Tally
) -> Iterator[NewShard]:
    start = 0
    images = (list(rows) for _, rows in groupby(found, key=lambda row: row.uri))
    batches = _shards(images, shard_rows)
    batch = next(batches, None)
    while batch is not None:
        after = next(batches, None)
        piece = Piece(part, start, start + len(batch), is_last=after is None)
        yield NewShard(str(piece), batch, left_out if after is None else Tally())
        start, batch = piece.stop, after


def _shards(images: Iterable[list[FoundImage]], shard_rows: int) -> Iterator[list[FoundImage]]:
    """The rows of one shard after the other; those of an image are never parted."""
    batch: list[FoundImage] = []
    for rows in images:
        if batch and len(batch) + len(rows) > shard_rows:
            yield batch
            batch = []
        batch += rows
    if batch:
        yield batch


@contextmanager
def room_on_disk() -> Iterator[None]:
    """Turn a full temporary folder into an InputError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(
            f"the dataset's listing cannot be kept in the temporary folder ({error}); free some "
            "space, or name another folder in TMPDIR"
        ) from error


def _own_hashes(table: pa.Table) -> list[bytes]:
    """The hashes of a shard's rows, each by itself."""
    columns = ("uri", "label", "fingerprint", "declared", "width", "height")
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return [
        _row_hash(uri, label, fingerprint, (width, height) if declared else None)
        for uri, label, fingerprint, declared, width, height in rows
    ]


def _table_notes(table: pa.Table) -> NoteHashes:
    columns = [table.column(name) for name in ("detail", "boxes")]
    if all(column.null_count == table.num_rows for column in columns):
        return np.zeros(table.num_rows, NOTE_TYPE)
    notes = zip(*(column.to_pylist() for column in columns), strict=True)
    hashes = b"".join(_notes_hash(detail, boxes or ()) for detail, boxes in notes)
    return np.frombuffer(hashes, NOTE_TYPE)


def _row_hash(uri: str, label: str, fingerprint: str, size: tuple[int, int] | None) -> bytes:
    """16 bytes that tell a row from every other; `size` of a declared image."""
    text = f"{uri}\0{label}\0{fingerprint}\0{size or ''}"
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def _hashes_of_image(rows: Sequence[bytes]) -> list[bytes]:
    """The rows' hashes as parts of their image: they change when any of them does."""
    if len(rows) == 1:
        return list(rows)
    image = b"".join(sorted(rows))
    return [hashlib.blake2b(row + image, digest_size=HASH_BYTES).digest() for row in rows]


def _notes_hash(detail: str | None, boxes: Sequence[Sequence[float]]) -> bytes:
    """8 bytes that tell notes from others; zeros for none."""
    if detail is None and not boxes:
        return bytes(NOTE_BYTES)
    text = json.dumps([detail, boxes_of(boxes)])
    return hashlib.blake2b(text.encode(), digest_size=NOTE_BYTES).digest()


def _place(name: str, uri: str) -> bytes:
    """Where an image comes in the order: by its name, whatever the dataset's own place."""
    halves = (cleaned(name), uri)
    return b"".join(hashlib.sha256(half.encode(errors="replace")).digest()[:8] for half in halves)


def _whole_hash(row: bytes) -> bytes:
    """Numpy takes zeros at the end for no part of it."""
    return row.ljust(HASH_BYTES, b"\0")


def _are_in(hashes: Hashes, sorted_hashes: Hashes) -> npt.NDArray[np.bool_]:
    if not len(sorted_hashes):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(sorted_hashes, hashes).clip(max=len(sorted_hashes) - 1)
    are_in: npt.NDArray[np.bool_] = sorted_hashes[places] == hashes
    return are_in


def _first(pair: tuple[str, bytes]) -> str:
    return pair[0]


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
