"""Dataset shards: tables of about 1000 images each, checked once when they enter.

In: images as a source lists them. Out: immutable Parquet tables, one row per image and label, with
every image that cannot be used set aside and its reason beside it. Images stay where they are. The
rows of an image of several labels lie side by side.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias, cast

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.errors import ImageError, InputError
from diffmining_core.images.addresses import (
    archive_place,
    current_fingerprint,
    listed_bytes,
    read_bytes,
)
from diffmining_core.images.pixels import content_id, decode_rgb, header_size
from diffmining_core.images.reach import advice
from diffmining_core.images.shard_image import Box, ShardImage
from diffmining_core.images.tally import Tally

ALGO = "4"
"""Version of what decides a shard's rows, given the files' bytes."""

MIN_SIDE = 32
MAX_SIDE = 20_000
MAX_PIXELS = 89_000_000
"""Just under the number of pixels from which Pillow itself suspects an attack."""
MAX_ASPECT = 8
"""Longer side over shorter side."""

READERS = 8
"""Threads that each hold one image at a time."""

LARGE = 20_000_000
"""Pixels (80 MB decoded, some times that while converted) from which only one thread decodes."""

SHARD_SCHEMA = pa.schema(
    [
        # First 32 hex digits of the sha256 of the file's bytes; null if they could not be read.
        pa.field("image_id", pa.string()),
        # Absolute local path or fsspec URL; of a shard that holds its images, relative to its unit.
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        # Pixels, upright (after EXIF; as in the header if it was not decoded); null if unknown.
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        # From the listing, to see changes without reading.
        pa.field("fingerprint", pa.string(), nullable=False),
        # Null for a good image, else why it is not used.
        pa.field("set_aside", pa.string()),
        # Id and size are as the dataset's manifest says: the file has not been opened.
        pa.field("declared", pa.bool_(), nullable=False),
        # Where the label is in the image: [left, top, width, height] in pixels of the original
        # image; null if nothing is said of it.
        pa.field("boxes", pa.list_(pa.list_(pa.float64(), 4))),
        # More than the label tells, such as the region of a country; for training prompts.
        pa.field("detail", pa.string()),
    ]
)

_large_turn = threading.Lock()

Row: TypeAlias = dict[str, str | int | Sequence[Box] | None]
"""A row of SHARD_SCHEMA; what it lacks is null."""


@dataclass(frozen=True)
class FoundImage:
    """An image under one label as its source lists it, not yet read.

    An image of several labels is as many of these, one after the other. `fingerprint` changes when
    the image does.

    image_id, width, height: where the source gives them (pixels, upright); with all three it is
    declared, and indexed without being opened. fault: why it cannot be used, as the source sees it.
    detail and boxes are notes on it: correcting them makes no new image of it.
    """

    uri: str
    label: str
    fingerprint: str
    image_id: str | None = None
    width: int | None = None
    height: int | None = None
    fault: str | None = None
    detail: str | None = None
    boxes: tuple[Box, ...] = ()

    @classmethod
    def faulty(cls, uri: str, label: str, fault: str) -> FoundImage:
        """A row that cannot be used; it is new again once its fault is another or none."""
        return cls(uri, label, f"fault: {fault}", fault=fault)

    @property
    def declared_size(self) -> tuple[int, int] | None:
        """(width, height) of a declared image, None for others."""
        if self.fault or None in (self.image_id, self.width, self.height):
            return None
        return cast("tuple[int, int]", (self.width, self.height))


@dataclass(frozen=True)
class KnownShard:
    """A shard indexed before; `part` is what its NewShard had, `rows` reads its table."""

    key: str
    part: str | None
    rows: Callable[[], pa.Table]


@dataclass(frozen=True)
class Notes:
    """What may be corrected of a row of a shard without making another image of it."""

    row: int
    detail: str | None
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class KeptShard:
    """A known shard that still holds, but for the rows of its table whose numbers are `dropped`.

    corrected: the notes that have changed.
    """

    key: str
    dropped: tuple[int, ...]
    corrected: tuple[Notes, ...] = ()


@dataclass(frozen=True)
class NewShard:
    """Images to be indexed as one shard; `part` says which piece of which file of the source.

    left_out: what else that file holds, told with its last piece.
    """

    part: str | None
    images: list[FoundImage]
    left_out: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class IndexPlan:
    """Which known shards hold, and the new ones, to be gone through once.

    images: how many rows the new ones have together, None where only reading them all would tell.
    left_out: what the source has that is no part of the dataset, but for what the new shards tell;
    complete once `new` has been gone through.
    """

    keep: list[KeptShard]
    new: Iterator[NewShard]
    images: int | None
    left_out: Tally = field(default_factory=Tally)


def index_shard(
    found: Sequence[FoundImage], on_progress: Callable[[int], object] = lambda images: None
) -> pa.Table:
    """Read, hash and check each image: a table of SHARD_SCHEMA, in the order of `found`.

    Declared images are not opened; one of several labels is opened once. on_progress is called, in
    this thread, with the number of rows done since the last call. Storage faults that may pass
    raise OSError; a file that is gone or closed to us is set aside like a broken one. InputError if
    a tar or Parquet file that holds the images is no longer what was listed.
    """
    _check_archives(found)
    rows = {place: row for place, image in enumerate(found) if (row := _settled_row(image))}
    on_progress(len(rows))
    to_open = [place for place in range(len(found)) if place not in rows]
    of_image = [
        list(places)
        for _, places in groupby(to_open, key=lambda i: (found[i].uri, found[i].image_id))
    ]
    with ThreadPoolExecutor(READERS) as pool:
        opened = pool.map(lambda places: _opened_row(found[places[0]]), of_image)
        for places, row in zip(of_image, opened, strict=True):
            rows |= {place: row | _new_row(found[place]) for place in places}
            on_progress(len(places))
    _check_archives(found)
    return pa.Table.from_pylist([rows[i] for i in range(len(found))], schema=SHARD_SCHEMA)


def _check_archives(found: Sequence[FoundImage]) -> None:
    """InputError if an archive has changed: a place in it now holds something else."""
    # A manifest's rows give an image id or nothing; no other has no fingerprint.
    listed_by_file = [f for f in found if f.fingerprint and not (f.image_id or f.fault)]
    places = {(archive_place(f.uri), f.fingerprint) for f in listed_by_file}
    for file, listed in sorted({(place.file, mark) for place, mark in places if place}):
        try:
            unchanged = current_fingerprint(file) == listed
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise InputError(f"{file} has changed or gone since it was listed; start again")


def _check_length(found: FoundImage, came: int) -> None:
    """OSError, which may pass, if another number of bytes came of a file than is listed."""
    is_listed_file = found.fingerprint and not (found.image_id or archive_place(found.uri))
    if is_listed_file and came != (listed := listed_bytes(found.fingerprint)):
        raise OSError(
            f"{found.uri}: {listed} bytes are listed, {came} came; it is being changed, or was cut "
            "short on the way"
        )


def _settled_row(found: FoundImage) -> Row | None:
    """The row of an image that need not be opened; None if it must be."""
    if found.fault is not None:
        return _new_row(found) | {"set_aside": found.fault}
    if found.declared_size is None:
        return None
    width, height = found.declared_size
    row = _new_row(found) | {
        "image_id": found.image_id,
        "width": width,
        "height": height,
        "declared": True,
    }
    try:
        _check_size(width, height)
    except ImageError as error:
        return row | {"set_aside": str(error)}
    return row


def _opened_row(found: FoundImage) -> Row:
    row = _new_row(found)
    try:
        data = read_bytes(found.uri)
    except FileNotFoundError as error:
        return row | {"set_aside": f"cannot be read: {error}"}
    except ImageError as error:
        return row | {"set_aside": str(error)}
    except InputError as error:
        # Of this one file on this machine; a server may refuse all, the credentials having expired.
        if isinstance(error.__cause__, PermissionError) and error.__cause__.errno is not None:
            return row | {"set_aside": f"cannot be read: {error.__cause__}"}
        raise
    _check_length(found, len(data))
    row["image_id"] = content_id(data)
    try:
        if found.image_id not in (None, row["image_id"]):
            raise ImageError(f"its image id is not {found.image_id}, as the manifest says")
        row["width"], row["height"] = size = header_size(data)
        _check_size(*size)
        with _large_turn if size[0] * size[1] >= LARGE else nullcontext():
            row["width"], row["height"] = decode_rgb(data).size
    except ImageError as error:
        return row | {"set_aside": str(error)}
    return row


def _new_row(found: FoundImage) -> Row:
    return {
        "uri": found.uri,
        "label": found.label,
        "fingerprint": found.fingerprint,
        "declared": False,
        "detail": found.detail,
        "boxes": found.boxes or None,
    }


def _check_size(width: int, height: int) -> None:
    """ImageError with the reason if an image of this size is not used."""
    short, long = sorted((width, height))
    if short < MIN_SIDE:
        raise ImageError(f"shorter side is {short} px, under {MIN_SIDE}")
    if long > MAX_SIDE:
        raise ImageError(f"longer side is {long} px, over {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} × {height} px are over {MAX_PIXELS} pixels")
    if long > MAX_ASPECT * short:
        raise ImageError(f"{width} × {height} px: one side is over {MAX_ASPECT} times the other")


def shard_content_id(table: pa.Table) -> str:
    """Sha256 hex of the rows' image ids, labels and whether each is used, in order.

    Places and times do not enter: the same images elsewhere have the same id. Nor do boxes, so that
    correcting one measures nothing anew, nor details, which only training reads: `details_id`.
    """
    digest = hashlib.sha256()
    columns = (table.column(name).to_pylist() for name in ("image_id", "label", "set_aside"))
    for image_id, label, set_aside in zip(*columns, strict=True):
        digest.update(json.dumps([image_id, label, set_aside is None]).encode() + b"\n")
    return digest.hexdigest()


def details_id(table: pa.Table) -> str:
    """Sha256 hex of the rows that have a detail, in order; "" where none has."""
    noted = table.filter(pc.is_valid(table.column("detail")))
    if not noted.num_rows:
        return ""
    columns = (noted.column(name).to_pylist() for name in ("image_id", "label", "detail"))
    lines = "\n".join(map(json.dumps, zip(*columns, strict=True)))
    return hashlib.sha256(lines.encode()).hexdigest()


def with_notes(table: pa.Table, corrected: Sequence[Notes]) -> pa.Table:
    """The table of a shard with other notes on some of its rows."""
    details, boxes = (table.column(name).to_pylist() for name in ("detail", "boxes"))
    for notes in corrected:
        details[notes.row], boxes[notes.row] = notes.detail, notes.boxes or None
    for name, values in (("detail", details), ("boxes", boxes)):
        column = SHARD_SCHEMA.field(name)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, column, pa.array(values, column.type))
    return table


def good(table: pa.Table) -> pa.Table:
    """The rows that are not set aside."""
    return table.filter(pc.is_null(table.column("set_aside")))


def images_of(table: pa.Table) -> list[ShardImage]:
    """The rows of a table of good images."""
    columns = ["image_id", "uri", "label", "width", "height", "declared", "detail", "boxes"]
    return [
        ShardImage(**row | {"boxes": boxes_of(row["boxes"])})
        for row in table.select(columns).to_pylist()
    ]


def boxes_of(value: Sequence[Sequence[float]] | None) -> tuple[Box, ...]:
    """Boxes as they are stored, none where there is nothing."""
    return tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in value or ())


def check_labels(counts: Mapping[str, int], min_images: int) -> None:
    """InputError naming the labels with fewer than `min_images` good images."""
    few = {label: count for label, count in sorted(counts.items()) if count < min_images}
    if few:
        named = ", ".join(f"{label} ({count})" for label, count in few.items())
        raise InputError(
            f"each label needs {min_images} usable images or more, these have fewer: {named}; add "
            "images, or take these labels out of the dataset"
        )


def check_set_aside(table: pa.Table, max_bad_share: float) -> None:
    """InputError with the commonest reasons if more than this share (0 to 1) is set aside."""
    bad = table.filter(pc.is_valid(table.column("set_aside")))
    first = str(bad.column("uri")[0]) if bad.num_rows else ""
    check_share(bad.column("set_aside").to_pylist(), table.num_rows, max_bad_share, first)


def check_share(reasons: Sequence[str], images: int, max_bad_share: float, first: str = "") -> None:
    """The same for `reasons` to set aside some of so many images; `first`: the first one's uri."""
    if len(reasons) <= max_bad_share * images:
        return
    if elsewhere := advice(reasons):
        raise InputError(
            f"{len(reasons)} of {images} images of a shard cannot be used, more than the "
            f"{max_bad_share:.0%} allowed: {elsewhere}"
        )
    named = "; ".join(f"{count} × {reason}" for reason, count in Counter(reasons).most_common(3))
    raise InputError(
        f"{len(reasons)} of {images} images of a shard cannot be used, more than the "
        f"{max_bad_share:.0%} allowed ({named}{first and f', the first being {first}'}); mend or "
        "remove them, or allow a larger share"
    )
