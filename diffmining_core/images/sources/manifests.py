"""Manifests: tables (CSV, TSV, Parquet) that name images and their labels."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import (
    Row,
    archive_place,
    opened,
    opened_parquet,
    parquet_batches,
)
from diffmining_core.images.planning import Listing, Part, parts_digest, plan_rows
from diffmining_core.images.reach import WEB, Reach, scheme_of
from diffmining_core.images.shard_image import Box
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard, boxes_of
from diffmining_core.images.sources.tables import (
    LABEL_COLUMNS,
    class_names,
    label_text,
    labels_in,
    separator,
)
from diffmining_core.store.roots import explained

URI_COLUMNS = ("uri", "path", "file_name", "image")
ID_COLUMNS = ("image_id", "sha256")
SIZE_COLUMNS = ("width", "height")
NOTE_COLUMNS = ("detail", "boxes")

BATCH = 10_000
AHEAD = 8 * 2**20
"""Bytes that are fetched at once from a manifest that is not on this machine."""

MAX_SIDE = 2**31 - 1

_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")


class ManifestSource:
    """One table, or several of one kind together.

    Columns: `uri` (or `path`, `file_name`, `image`), relative to the manifest's folder or an
    address as in `addresses`; `label`, or `labels` (text joined by "|", or a list); optional
    `image_id` (32 hex digits) or `sha256` (64), and `width` and `height` (pixels, upright). A row
    with all three is declared. A row's fingerprint is its image id; without one, nothing tells that
    its file has changed until the file is read, when the id from the index no longer fits.

    Optional `detail` (text), and `boxes`: a list of [left, top, width, height] in pixels of the
    original image, in text as JSON; for an image of several labels such lists by label.
    """

    def __init__(self, url: str, parts: Sequence[Part], reach: Reach | None = None) -> None:
        self.url = url
        self.parts = parts
        self.reach = reach or Reach(url.rpartition("/")[0])

    @property
    def digest(self) -> str:
        """Of the names, sizes and ETags or times of the manifest's files, and what is allowed."""
        return parts_digest(" ".join(["manifest", *self.reach.allow]), self.parts)

    def images(self) -> Iterator[FoundImage]:
        """Every row, file by file."""
        return (image for _, image in self._named())

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """By a listing of all rows, however little has changed."""
        return plan_rows(Listing(self._named()), known, shard_rows)

    def _named(self) -> Iterator[tuple[str, FoundImage]]:
        """Each image with the address that the manifest has for it."""
        for part in self.parts:
            folder = part.url.rpartition("/")[0]
            row = 0
            with explained(part.url):
                for batch in _batches(part.url):
                    for entry in batch:
                        place = f"{part.url}#row={row}"
                        yield from _named_images(entry, place, folder, self.reach)
                        row += 1


class Entry(NamedTuple):
    """What a row says; `fault`: why it cannot be read."""

    uri: str
    labels: Sequence[str]
    image_id: str = ""
    width: Any = None
    height: Any = None
    detail: str = ""
    boxes: Any = None
    fault: str | None = None


def _named_images(
    entry: Entry, place: str, folder: str, reach: Reach
) -> Iterator[tuple[str, FoundImage]]:
    """The image under each of its labels; `place` stands for the address of a row without one."""
    uri, labels, image_id, fault = entry.uri, entry.labels, entry.image_id, entry.fault
    if fault is None and not uri:
        fault = "its row names no file"
    address = _absolute(uri, folder) if uri else place
    name = (uri if "://" in uri else posixpath.normpath(uri)) if uri else place
    if fault is None:
        fault = _refusal(address, reach)
    if fault is None and not labels:
        fault = "it has no label"
    if fault is None and image_id and not _HEX.fullmatch(image_id.lower()):
        fault = f"its image id {image_id[:80]!r} is not 32 or 64 hex digits"
    width, height = _side(entry.width), _side(entry.height)
    if fault is None and None in (width, height):
        fault = (
            f"its width and height ({entry.width!s:.20}, {entry.height!s:.20}) are no numbers of "
            "pixels"
        )
    boxes: Mapping[str, Sequence[Box]] = {}
    if fault is None and entry.boxes:
        try:
            boxes = _boxes_by_label(entry.boxes, labels)
        except (TypeError, ValueError):
            fault = (
                f"its boxes ({entry.boxes!s:.80}) are no lists of left, top, width and height, by "
                "label if there are several"
            )
    if fault is not None:
        yield name, FoundImage.faulty(address, labels[0] if labels else "", fault)
        return
    known_id = image_id[:32].lower() or None
    for label in labels:
        yield (
            name,
            FoundImage(
                address,
                label,
                known_id or "",
                known_id,
                width or None,
                height or None,
                detail=entry.detail or None,
                boxes=tuple(boxes.get(label, ())),
            ),
        )


def _boxes_by_label(value: Any, labels: Sequence[str]) -> Mapping[str, Sequence[Box]]:
    """The boxes of a row; ValueError or TypeError if they are none of its labels'."""
    value = json.loads(value) if isinstance(value, str) else value
    if isinstance(value, list) and len(labels) == 1:
        value = {labels[0]: value}
    if not isinstance(value, dict) or not value.keys() <= set(labels):
        raise ValueError
    return {label: boxes_of(boxes) for label, boxes in value.items()}


def _side(value: Any) -> int | None:
    """Pixels, 0 where nothing is given, None where it is no such number."""
    if value is None or value == "":
        return 0
    try:
        side = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return side if side == float(value) and 0 < side <= MAX_SIDE else None


def _refusal(address: str, reach: Reach) -> str | None:
    """Why the place that a row names is not read, None where it is."""
    place = archive_place(address)
    if isinstance(place, Row) and scheme_of(place.file) in WEB:
        return "it is a row of a Parquet file on the web; give that file as the dataset"
    return reach.fault(place.file if place else address)


def _absolute(uri: str, folder: str) -> str:
    if "://" in uri or uri.startswith("/"):
        return uri
    protocol, mark, path = folder.rpartition("://")
    return protocol + mark + posixpath.normpath(f"{path}/{uri}")


def _batches(file: str) -> Iterator[list[Entry]]:
    if PurePosixPath(file).suffix == ".parquet":
        yield from _parquet_batches(file)
    else:
        yield from _text_batches(file)


def _parquet_batches(file: str) -> Iterator[list[Entry]]:
    with opened_parquet(file) as parquet:
        schema = parquet.schema_arrow
        columns = _columns(file, schema.names)
        names = class_names(schema, columns["label"])
        for batch in parquet_batches(parquet, BATCH, list(columns.values())):
            yield _entries(batch, columns, names)


def _text_batches(file: str) -> Iterator[list[Entry]]:
    delimiter = "\t" if PurePosixPath(file).suffix == ".tsv" else ","
    unreadable: list[Entry] = []

    def note(row: Any) -> str:
        text = " ".join((row.text or "").split())[:80]
        unreadable.append(
            Entry(
                "",
                (),
                fault=f"its row has {row.actual_columns} fields, the first line "
                f"{row.expected_columns}: {text}",
            )
        )
        return "skip"

    one_thread = pyarrow.csv.ReadOptions(use_threads=False)  # which is then the only one to note
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note)
    try:
        with opened(file, AHEAD) as handle:
            head = pyarrow.csv.open_csv(handle, one_thread, parse)
            columns = _columns(file, head.schema.names)
        unreadable.clear()
        convert = pyarrow.csv.ConvertOptions(
            include_columns=list(columns.values()),
            column_types=dict.fromkeys(columns.values(), pa.string()),
        )
        with opened(file, AHEAD) as handle:
            for batch in pyarrow.csv.open_csv(handle, one_thread, parse, convert):
                yield _entries(batch, columns, None)
                yield unreadable[:]
                unreadable.clear()
        yield unreadable
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is no readable table ({reason})") from error


def _columns(file: str, names: Sequence[str]) -> dict[str, str]:
    """What each wanted thing is called in this manifest."""
    wanted = {"uri": URI_COLUMNS, "label": LABEL_COLUMNS, "image_id": ID_COLUMNS}
    columns = {
        thing: next(name for name in choices if name in names)
        for thing, choices in wanted.items()
        if set(choices) & set(names)
    }
    if "uri" not in columns or "label" not in columns:
        raise InputError(
            f"{file}: expected the columns `uri` (or `path`, `file_name`, `image`) and `label` (or "
            f"`labels`), found {', '.join(names)}"
        )
    return columns | {name: name for name in (*SIZE_COLUMNS, *NOTE_COLUMNS) if name in names}


def _entries(
    batch: pa.RecordBatch, columns: Mapping[str, str], names: Sequence[str] | None
) -> list[Entry]:
    nothing = [None] * batch.num_rows
    values = {thing: batch.column(name).to_pylist() for thing, name in columns.items()}
    between = separator(columns["label"])
    return [
        Entry(
            label_text(uri),
            labels_in(label, names, between),
            label_text(image_id),
            width,
            height,
            label_text(detail),
            boxes,
        )
        for uri, label, image_id, width, height, detail, boxes in zip(
            values["uri"],
            values["label"],
            *(values.get(thing, nothing) for thing in ("image_id", *SIZE_COLUMNS, *NOTE_COLUMNS)),
            strict=True,
        )
    ]
