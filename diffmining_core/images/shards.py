"""Dataset shards: tables of about 1000 images each, checked once when they enter.

In: images as a source lists them. Out: immutable Parquet tables, one row per image and label, with
every image that cannot be used set aside and its reason beside it. Images stay where they are, but
for those whose address holds a secret: it is never stored, so that the shard keeps their bytes. The
rows of an image of several labels lie side by side.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeAlias, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffmining_core.errors import ImageError, InputError
from diffmining_core.images.addresses import (
    archive_place,
    current_fingerprint,
    listed_bytes,
    read_bytes,
    row_uri,
)
from diffmining_core.images.pixels import SCALED_BITS, content_id, decode_rgb, header_size
from diffmining_core.images.reach import advice
from diffmining_core.images.shard_image import Box, ShardImage
from diffmining_core.images.tally import Tally
from diffmining_core.secrets import cleaned, secrets_kept, without_secrets
from diffmining_core.store.roots import explained

ALGO = "6"
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

KEPT_FILE, KEPT_COLUMN = "images.parquet", "image"
"""The file, in a shard's unit, with the images whose addresses hold secrets, and its column."""

KEPT_GROUP_BYTES = 4 * 2**20
"""Bytes of a row group of that file: held in memory, and read for each image."""

SHARD_SCHEMA = pa.schema(
    [
        # First 32 hex digits of the sha256 of the file's bytes; null if they could not be read.
        pa.field("image_id", pa.string()),
        # Absolute local path or fsspec URL, without any secret; of a shard that holds its images,
        # relative to its unit.
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
        # Bits of grey that the image fills of 16 and was scaled by; null for others.
        pa.field("scaled_bits", pa.int8()),
        # More than the label tells, such as the region of a country; for training prompts.
        pa.field("detail", pa.string()),
        # Where the shard keeps the image, relative to its unit; null where it is read at `uri`.
        pa.field("stored", pa.string()),
    ]
)

LABEL_FAULT = "its label has a line break or other control characters"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

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

    uri is its address without secrets, and so are label and detail, whatever they are made with.
    private_uri: the whole address, where it holds a secret; to be read from, never to be stored or
    shown. Such an image is opened even where id and size are given, while its address is still
    good.
    """

    uri: str
    label: str
    fingerprint: str
    image_id: str | None = None
    width: int | None = None
    height: int | None = None
    fault: str | None = None
    detail: str | None = None
    private_uri: str | None = field(default=None, repr=False, compare=False)
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if (uri := cleaned(self.uri)) != self.uri:
            object.__setattr__(self, "private_uri", self.uri)
            object.__setattr__(self, "uri", uri)
        object.__setattr__(self, "label", without_secrets(self.label))
        if self.detail is not None:
            object.__setattr__(self, "detail", without_secrets(self.detail))
        if self.fault is None and _CONTROL.search(self.label):
            object.__setattr__(self, "label", "")
            object.__setattr__(self, "fault", LABEL_FAULT)
            object.__setattr__(self, "fingerprint", f"fault: {LABEL_FAULT}")

    @classmethod
    def faulty(cls, uri: str, label: str, fault: str) -> FoundImage:
        """A row that cannot be used; it is new again once its fault is another or none."""
        fault = without_secrets(fault)
        return cls(uri, label, f"fault: {fault}", fault=fault)

    @property
    def declared_size(self) -> tuple[int, int] | None:
        """(width, height) of a declared image, None for others."""
        if self.fault or self.private_uri or None in (self.image_id, self.width, self.height):
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

    left_out: what else that file holds, given with its last piece.
    """

    part: str | None
    images: list[FoundImage]
    left_out: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class IndexPlan:
    """Which known shards hold, and the new ones, to be gone through once.

    images: how many rows the new ones have together, None where only reading them all would tell.
    left_out: what is no part of the dataset, except what the new shards count themselves; complete
    once `new` is exhausted.
    """

    keep: list[KeptShard]
    new: Iterator[NewShard]
    images: int | None
    left_out: Tally = field(default_factory=Tally)


class KeptImages:
    """The images that a shard keeps, on their way into one local Parquet file.

    Threads may add to it at once; not more than a row group is in memory. There is no file where
    there are no images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._writer: pq.ParquetWriter | None = None
        self._held: list[bytes] = []
        self._rows = 0

    def add(self, name: str, data: bytes) -> str:
        """Keep an image; returns its address relative to the shard's unit, which ends in `name`."""
        with self._lock:
            address = row_uri(KEPT_FILE, self._rows, KEPT_COLUMN, name)
            self._rows += 1
            self._held.append(data)
            if sum(map(len, self._held)) >= KEPT_GROUP_BYTES:
                self._write()
        return address

    def close(self) -> None:
        """Write what is still held."""
        if self._held:
            self._write()
        if self._writer:
            self._writer.close()

    def _write(self) -> None:
        images = pa.table({KEPT_COLUMN: pa.array(self._held, pa.binary())})
        with explained(str(self.path.parent)):
            if self._writer is None:  # images are compressed already
                self._writer = pq.ParquetWriter(self.path, images.schema, compression="none")
            self._writer.write_table(images)
        self._held = []


def index_shard(
    found: Sequence[FoundImage],
    on_progress: Callable[[int], object] = lambda images: None,
    kept: KeptImages | None = None,
) -> pa.Table:
    """Read, hash and check each image: a table of SHARD_SCHEMA, in the order of `found`.

    kept: takes the good images whose address holds a secret; ValueError where there are some and
    nothing takes them.
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
        opened = pool.map(lambda places: _kept_row(found[places[0]], kept), of_image)
        for places, row in zip(of_image, opened, strict=True):
            rows |= {place: row | _new_row(found[place]) for place in places}
            on_progress(len(places))
    _check_archives(found)
    if kept:
        kept.close()
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


def _kept_row(found: FoundImage, kept: KeptImages | None) -> Row:
    """The row of an image that was opened, with nothing of a secret in it."""
    with secrets_kept():
        row, data = _opened_row(found)
    if (reason := row.get("set_aside")) is not None:
        row["set_aside"] = without_secrets(str(reason))
    elif found.private_uri:
        if kept is None:
            raise ValueError(f"{found.uri}: its address holds a secret, so it has to be kept")
        row["stored"] = kept.add(found.uri.partition("#")[0], data)
    return row


def _opened_row(found: FoundImage) -> tuple[Row, bytes]:
    row = _new_row(found)
    try:
        data = read_bytes(found.private_uri or found.uri)
    except FileNotFoundError as error:
        reason = error.strerror or "there is no such file"
        return row | {"set_aside": f"cannot be read: {reason}"}, b""
    except ImageError as error:
        return row | {"set_aside": str(error)}, b""
    except InputError as error:
        # Of this one file on this machine; a server may refuse all, the credentials having expired.
        if isinstance(error.__cause__, PermissionError) and error.__cause__.errno is not None:
            return row | {"set_aside": f"cannot be read: {error.__cause__.strerror}"}, b""
        raise
    _check_length(found, len(data))
    row["image_id"] = content_id(data)
    try:
        if found.image_id not in (None, row["image_id"]):
            raise ImageError(f"its image id is not {found.image_id}, as the manifest says")
        row["width"], row["height"] = size = header_size(data)
        _check_size(*size)
        with _large_turn if size[0] * size[1] >= LARGE else nullcontext():
            image = decode_rgb(data)
        row["width"], row["height"] = image.size
        row["scaled_bits"] = image.info.get(SCALED_BITS)
    except ImageError as error:
        return row | {"set_aside": str(error)}, b""
    return row, data


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


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of the table of a shard; nulls where an older version stored none."""
    if name in table.column_names:
        return table.column(name)
    return pa.chunked_array([pa.nulls(table.num_rows, SHARD_SCHEMA.field(name).type)])


def good(table: pa.Table) -> pa.Table:
    """The rows that are not set aside."""
    return table.filter(pc.is_null(table.column("set_aside")))


def places_of(table: pa.Table, unit: str) -> list[str]:
    """Where the images of a table are read: in the table's own unit, or at their addresses.

    unit: the address of the folder with the unit's files.
    """
    places = pc.coalesce(column(table, "stored"), table.column("uri")).to_pylist()
    return [place if _is_full(place) else f"{unit}/{place}" for place in places]


def _is_full(place: str) -> bool:
    return place.startswith("/") or "://" in place.partition("#")[0]


def images_of(table: pa.Table, unit: str) -> list[ShardImage]:
    """The rows of a table of good images, at the places where they are read (`places_of`)."""
    columns = ["image_id", "label", "width", "height", "declared", "detail", "boxes"]
    rows = zip(places_of(table, unit), table.select(columns).to_pylist(), strict=True)
    return [
        ShardImage(**row | {"uri": place, "boxes": boxes_of(row["boxes"])}) for place, row in rows
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
