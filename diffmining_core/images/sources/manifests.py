"""Manifests: tables (CSV, TSV, Parquet) that name images and their labels."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import (
    Row,
    archive_place,
    opened_parquet,
    parquet_batches,
)
from diffmining_core.images.planning import Listing, Part, parts_digest, plan_rows
from diffmining_core.images.reach import WEB, Reach, scheme_of
from diffmining_core.images.shard_image import Box, sound_box
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard
from diffmining_core.images.sources.tables import (
    LABEL_COLUMNS,
    URI_COLUMNS,
    check_label_type,
    class_fault,
    class_names,
    column_values,
    is_text,
    label_text,
    labels_in,
    named_column,
    separator,
)
from diffmining_core.images.sources.text_tables import (
    NO_LABEL,
    TextTable,
    name_fault,
    opened_text,
    table_suffix,
)
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

COLUMNS = {
    "uri": URI_COLUMNS,
    "label": LABEL_COLUMNS,
    "image_id": ("image_id", "sha256"),
    "width": ("width",),
    "height": ("height",),
    "detail": ("detail",),
    "boxes": ("boxes",),
}
"""Accepted names of each column, whatever their case."""

OTHER_THINGS = list(COLUMNS)[2:]

BATCH = 10_000

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

    def __init__(
        self,
        url: str,
        parts: Sequence[Part],
        reach: Reach | None = None,
        left_out: Tally | None = None,
    ) -> None:
        self.url = url
        self.parts = parts
        self.reach = reach or Reach(url.rpartition("/")[0])
        self.left_out = left_out or Tally()

    @property
    def digest(self) -> str:
        """Of the names, sizes and ETags or times of the manifest's files, and what is allowed."""
        kind = " ".join(["manifest", *self.reach.allow])
        return parts_digest(kind, self.parts, self.left_out)

    def images(self) -> Iterator[FoundImage]:
        """Every row, file by file."""
        return (image for _, image in self._named())

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """By a listing of all rows, however little has changed."""
        plan = plan_rows(Listing(self._named()), known, shard_rows)
        plan.left_out.update(self.left_out.as_json())
        return plan

    def _named(self) -> Iterator[tuple[str, FoundImage]]:
        """Each image with the address that the manifest has for it."""
        for part in self.parts:
            folder = part.url.rpartition("/")[0]
            with explained(part.url):
                for place, entry in _entries(part.url):
                    yield from _named_images(entry, f"{part.url}#{place}", folder, self.reach)


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
    address = _absolute(uri, folder) if uri else place
    name = (uri if "://" in uri else posixpath.normpath(uri)) if uri else place
    fault = fault or name_fault(uri or None) or _refusal(address, reach)
    if fault is None and not labels:
        fault = NO_LABEL
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
        except (TypeError, ValueError, OverflowError, RecursionError):
            fault = (
                f"its boxes ({entry.boxes!s:.80}) are no lists of left, top, width and height, by "
                "label if there are several; the sizes should be over 0"
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
    return {label: [sound_box(box) for box in boxes or ()] for label, boxes in value.items()}


def _side(value: Any) -> int | None:
    """Pixels, 0 where nothing is given, None where it is no such number."""
    if value is None or value == "":
        return 0
    try:
        side = float(value)
    except (TypeError, ValueError):
        return None
    if math.isnan(side):  # how some write that nothing is given
        return 0
    return int(side) if 0 < side <= MAX_SIDE and side.is_integer() else None


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


def _entries(file: str) -> Iterator[tuple[str, Entry]]:
    """Each row with its place in the file, as `line=7` or `row=3`."""
    return _parquet_entries(file) if table_suffix(file) == ".parquet" else _text_entries(file)


def _parquet_entries(file: str) -> Iterator[tuple[str, Entry]]:
    with opened_parquet(file) as parquet:
        schema = parquet.schema_arrow
        columns = _columns(file, schema.names)
        names = class_names(schema, columns["label"])
        between = separator(columns["label"])
        check_label_type(file, schema.field(columns["label"]))
        for thing in ("uri", "image_id", "detail"):
            if thing in columns:
                _check_text_type(file, schema.field(columns[thing]), thing)
        row = 0
        for batch in parquet_batches(parquet, BATCH, list(columns.values())):
            nothing = [None] * batch.num_rows
            values = {thing: column_values(file, batch, name) for thing, name in columns.items()}
            for uri, label, *others in zip(
                *(values.get(thing, nothing) for thing in ("uri", "label", *OTHER_THINGS)),
                strict=True,
            ):
                entry = _entry(uri, labels_in(label, names, between), *others)
                yield f"row={row}", entry._replace(fault=class_fault(label, names))
                row += 1


def _text_entries(file: str) -> Iterator[tuple[str, Entry]]:
    delimiter = "\t" if table_suffix(file) == ".tsv" else ","
    with opened_text(file) as text:
        table = TextTable(file, text, delimiter)
        columns = {
            thing: table.names.index(name) for thing, name in _columns(file, table.names).items()
        }
        uri, label = columns["uri"], columns["label"]
        between = separator(table.names[label])
        others = [columns.get(thing) for thing in OTHER_THINGS]
        for line, fields, fault in table.rows(uri):
            if fault is not None:
                yield f"line={line}", Entry("", (), fault=fault)
                continue
            labels = labels_in(fields[label], None, between)
            found = [None if place is None else fields[place] for place in others]
            yield f"line={line}", _entry(fields[uri], labels, *found)


def _columns(file: str, names: Sequence[str]) -> dict[str, str]:
    """What each wanted thing is called in this manifest."""
    found = {thing: named_column(file, names, choices) for thing, choices in COLUMNS.items()}
    columns = {thing: name for thing, name in found.items() if name is not None}
    if "uri" not in columns or "label" not in columns:
        raise InputError(
            f"{file}: expected the columns `uri` (or `path`, `file_name`, `image`) and `label` (or "
            f"`labels`), found {', '.join(names)}"
        )
    return columns


def _check_text_type(file: str, field: pa.Field, thing: str) -> None:
    """InputError for a column that should hold text and does not."""
    if not is_text(field.type):
        wanted = {
            "uri": "the names of the images",
            "image_id": "the first 32 or all 64 hex digits of the files' sha256",
            "detail": "text",
        }[thing]
        raise InputError(
            f"{file}: its column `{field.name}` should hold {wanted}, but is {field.type}; rename "
            "it if it means something else"
        )


def _entry(
    uri: object,
    labels: Sequence[str],
    image_id: object,
    width: object,
    height: object,
    detail: object,
    boxes: object,
) -> Entry:
    return Entry(
        label_text(uri), labels, label_text(image_id), width, height, label_text(detail), boxes
    )
