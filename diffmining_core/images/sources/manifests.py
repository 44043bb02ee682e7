"""Manifests: tables (CSV, TSV, Parquet) that name images and their labels."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import opened, opened_parquet, parquet_batches
from diffmining_core.images.planning import Listing, Part, parts_digest, plan_rows
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard
from diffmining_core.images.sources.tables import LABEL_COLUMNS, class_names, label_text
from diffmining_core.store.roots import explained

URI_COLUMNS = ("uri", "path", "file_name", "image")
ID_COLUMNS = ("image_id", "sha256")
SIZE_COLUMNS = ("width", "height")

BATCH = 10_000
AHEAD = 8 * 2**20
"""Bytes that are fetched at once from a manifest that is not on this machine."""

MAX_SIDE = 2**31 - 1

_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")

logger = logging.getLogger(__name__)


class ManifestSource:
    """One table, or several of one kind together.

    Columns: `uri` (or `path`, `file_name`, `image`), relative to the manifest's folder or an
    address as in `addresses`; `label`; optional `image_id` (32 hex digits) or `sha256` (64), and
    `width` and `height` (pixels, upright). A row with all three is declared. A row's fingerprint is
    its image id; without one, nothing tells that its file has changed until the file is read, when
    the id from the index no longer fits.
    """

    def __init__(self, url: str, parts: Sequence[Part]) -> None:
        self.url = url
        self.parts = parts

    @property
    def digest(self) -> str:
        """Of the names, sizes and ETags or times of the manifest's files."""
        return parts_digest("manifest", self.parts)

    def images(self) -> Iterator[FoundImage]:
        """Every row, file by file."""
        return (image for _, image in self._named())

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """By a listing of all rows, however little has changed."""
        listing = Listing(self._named())
        if listing.repeated:
            logger.warning(
                "dataset %s: %d rows are there more than once and count once",
                self.url,
                listing.repeated,
            )
        return plan_rows(listing, known, shard_rows)

    def _named(self) -> Iterator[tuple[str, FoundImage]]:
        """Each image with the address that the manifest has for it."""
        for part in self.parts:
            folder = part.url.rpartition("/")[0]
            row = 0
            with explained(part.url):
                for batch in _batches(part.url):
                    for entry in batch:
                        yield _named_image(entry, f"{part.url}#row={row}", folder)
                        row += 1


Entry = tuple[str, str, str, Any, Any, str | None]
"""uri, label, image id ("" for none), width, height, and why the row cannot be read if so."""


def _named_image(entry: Entry, place: str, folder: str) -> tuple[str, FoundImage]:
    """`place` stands for the address of a row that has none."""
    uri, label, image_id, width, height, fault = entry
    if fault is None and not uri:
        fault = "its row names no file"
    address = _absolute(uri, folder) if uri else place
    if fault is None and not label:
        fault = "it has no label"
    if fault is None and image_id and not _HEX.fullmatch(image_id.lower()):
        fault = f"its image id {image_id[:80]!r} is not 32 or 64 hex digits"
    sides = [_side(width), _side(height)]
    if fault is None and None in sides:
        fault = f"its width and height ({width!s:.20}, {height!s:.20}) are no numbers of pixels"
    if fault is not None:
        return uri or place, FoundImage.faulty(address, label, fault)
    known_id = image_id[:32].lower() or None
    found = FoundImage(address, label, known_id or "", known_id, sides[0] or None, sides[1] or None)
    return uri, found


def _side(value: Any) -> int | None:
    """Pixels, 0 where nothing is given, None where it is no such number."""
    if value is None or value == "":
        return 0
    try:
        side = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return side if side == float(value) and 0 < side <= MAX_SIDE else None


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
            (
                "",
                "",
                "",
                None,
                None,
                f"its row has {row.actual_columns} fields, the first line "
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
            f"{file}: expected the columns `uri` (or `path`, `file_name`, `image`) and `label`, "
            f"found {', '.join(names)}"
        )
    return columns | {name: name for name in SIZE_COLUMNS if name in names}


def _entries(
    batch: pa.RecordBatch, columns: Mapping[str, str], names: Sequence[str] | None
) -> list[Entry]:
    nothing = [None] * batch.num_rows
    values = {thing: batch.column(name).to_pylist() for thing, name in columns.items()}
    return [
        (label_text(uri), label_text(label, names), label_text(image_id), width, height, None)
        for uri, label, image_id, width, height in zip(
            values["uri"],
            values["label"],
            *(values.get(thing, nothing) for thing in ("image_id", *SIZE_COLUMNS)),
            strict=True,
        )
    ]
