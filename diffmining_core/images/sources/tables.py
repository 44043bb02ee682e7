"""Parquet files with the images in them, as Hugging Face data sets have them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import opened_parquet, parquet_batches, row_uri
from diffmining_core.images.planning import Part, PartSource
from diffmining_core.images.shards import FoundImage
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

LABEL_COLUMNS = ("label", "labels")

BATCH = 10_000
"""Rows that are listed at once; the images themselves are not read."""

logger = logging.getLogger(__name__)


class TableSource(PartSource):
    """Parquet files with an image column (binary, or a struct with `bytes`) and a label column.

    A label is text, or a number that the `huggingface` metadata of the file names, or a list of
    these.
    """

    kind = "tables"

    def images_of(self, part: Part, left_out: Tally) -> Iterator[FoundImage]:
        """Every row, in the file's order."""
        return _rows(part)


def image_column_of(file: str) -> str | None:
    """The name of the column of a Parquet file that holds images, if any.

    InputError if the file cannot be read, or several do.
    """
    with explained(file), opened_parquet(file) as parquet:
        return _image_column(file, parquet.schema_arrow)


def _image_column(file: str, schema: pa.Schema) -> str | None:
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    if "image" in columns:
        return "image"
    if len(columns) > 1:
        raise InputError(
            f"{file}: its columns {', '.join(columns)} all hold bytes; call the one with the "
            "images `image`"
        )
    return columns[0] if columns else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(part: Part) -> Iterator[FoundImage]:
    with explained(part.url), opened_parquet(part.url) as parquet:
        schema = parquet.schema_arrow
        column = _image_column(part.url, schema)
        label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        if column is None or label_column is None:
            raise InputError(
                f"{part.url}: expected a column with the images' bytes and one called `label`, "
                f"found {', '.join(schema.names)}"
            )
        labels_of = partial(
            labels_in, names=class_names(schema, label_column), separator=separator(label_column)
        )
        has_path = pa.types.is_struct(schema.field(column).type) and (
            schema.field(column).type.get_field_index("path") >= 0
        )
        wanted = [label_column, f"{column}.path"] if has_path else [label_column]
        row = 0
        for batch in parquet_batches(parquet, BATCH, wanted):
            labels = batch.column(label_column).to_pylist()
            paths = batch.column(column).to_pylist() if has_path else [None] * len(labels)
            for label, path in zip(labels, paths, strict=True):
                name = (path or {}).get("path") or f"{PurePosixPath(part.url).stem}-{row}"
                uri = row_uri(part.url, row, column, name)
                yield from found_or_faulty(uri, labels_of(label), part.fingerprint)
                row += 1
    if not row:
        logger.warning("dataset: %s has no rows", part.url)


def found_or_faulty(uri: str, labels: Sequence[str], mark: str) -> Iterator[FoundImage]:
    """An image under each of its labels; one with a fault if it has none."""
    if not labels:
        yield FoundImage.faulty(uri, "", "it has no label")
    yield from (FoundImage(uri, label, mark) for label in labels)


def separator(column: str) -> str | None:
    """What stands between the labels in a column's text: only one called `labels` has several."""
    return "|" if column == "labels" else None


def labels_in(
    value: object, names: Sequence[str] | None = None, separator: str | None = None
) -> list[str]:
    """The labels of an image: of a list, or of text in which they may be separated."""
    values: Sequence[object] = value if isinstance(value, list) else [value]
    texts = [label_text(each, names) for each in values]
    parts = [part for text in texts for part in (text.split(separator) if separator else [text])]
    return list(dict.fromkeys(label for part in parts if (label := part.strip())))


def label_text(label: object, names: Sequence[str] | None = None) -> str:
    """A label as text, "" for none; a number stands for the name at its place, if there are any."""
    if label is None:
        return ""
    if names is not None and isinstance(label, int):
        return names[label] if 0 <= label < len(names) else ""
    if isinstance(label, bool | int | str):
        return str(label).strip()
    return ""


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a column's label numbers, where the `huggingface` metadata has them."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        feature = info["info"]["features"][column]
        names = (feature.get("feature") or feature)["names"]  # of a list, or of one label
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
