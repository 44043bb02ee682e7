"""Parquet files with the images in them, as Hugging Face data sets have them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import opened_parquet, parquet_batches, row_uri
from diffmining_core.images.planning import Part, PartSource
from diffmining_core.images.shards import FoundImage
from diffmining_core.images.sources.text_tables import NO_LABEL
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

if TYPE_CHECKING:
    import pyarrow.parquet as pq

URI_COLUMNS = ("uri", "path", "file_name", "image")
LABEL_COLUMNS = ("label", "labels")
IMAGE_COLUMN = "image"

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
    texts = {*LABEL_COLUMNS, *URI_COLUMNS} - {IMAGE_COLUMN}  # which may be stored as bytes
    columns = [
        field.name for field in schema if _holds_bytes(field.type) and _key(field.name) not in texts
    ]
    if (named := named_column(file, columns, (IMAGE_COLUMN,))) or not columns:
        return named
    if len(columns) > 1:
        raise InputError(
            f"{file}: its columns {', '.join(columns)} all hold bytes; call the one with the "
            "images `image`"
        )
    return str(columns[0])


def named_column(file: str, names: Sequence[str], choices: Sequence[str]) -> str | None:
    """The column that is called by one of the choices, in small letters or capitals.

    None if there is none; InputError if there are several.
    """
    found = [name for name in names if _key(name) in choices]
    if len(found) > 1:
        raise InputError(
            f"{file}: expected one column called {' or '.join(f'`{name}`' for name in choices)}, "
            f"found {' and '.join(f'`{name}`' for name in found)}; rename all but one of them"
        )
    return found[0] if found else None


def _key(name: str) -> str:
    return name.strip().lower()


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and (_is_bytes(kind[place].type) or pa.types.is_null(kind[place].type))
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text, as such or as bytes, or nothing."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return _is_bytes(kind) or pa.types.is_null(kind) or any(test(kind) for test in tests)


def check_label_type(file: str, field: pa.Field) -> None:
    """InputError unless the column holds text or numbers, or lists of them."""
    kind = field.type
    if any(test(kind) for test in _LISTS) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):  # in lists
        kind = kind.value_type
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not is_text(kind) and not any(test(kind) for test in numbers):
        raise InputError(
            f"{file}: its column `{field.name}` should hold labels as text or numbers, or lists of "
            f"them, but is {field.type}"
        )


_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def column_values(file: str, batch: pa.RecordBatch, column: str) -> list[Any]:
    """The values of a column; InputError if its text is no UTF-8."""
    try:
        return cast("list[Any]", batch.column(column).to_pylist())
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: its column `{column}` has text that is not in UTF-8") from error


def _rows(part: Part) -> Iterator[FoundImage]:
    with explained(part.url), opened_parquet(part.url) as parquet:
        schema = parquet.schema_arrow
        column = _image_column(part.url, schema)
        label_column = named_column(part.url, schema.names, LABEL_COLUMNS)
        if column is None or label_column is None:
            raise InputError(
                f"{part.url}: expected a column with the images' bytes and one called `label`, "
                f"found {', '.join(schema.names)}"
            )
        check_label_type(part.url, schema.field(label_column))
        names = class_names(schema, label_column)
        labels_of = partial(labels_in, names=names, separator=separator(label_column))
        has_path = pa.types.is_struct(schema.field(column).type) and (
            schema.field(column).type.get_field_index("path") >= 0
        )
        if has_path and _has_no_bytes(parquet, column):
            raise InputError(
                f"{part.url}: its column `{column}` has paths of images but not their bytes; write "
                "the bytes into it, or give a manifest that has the paths in a column `uri`"
            )
        wanted = [label_column, f"{column}.path"] if has_path else [label_column]
        row = 0
        for batch in parquet_batches(parquet, BATCH, wanted):
            labels = column_values(part.url, batch, label_column)
            paths = column_values(part.url, batch, column) if has_path else [None] * batch.num_rows
            for label, path in zip(labels, paths, strict=True):
                name = (path or {}).get("path") or f"{PurePosixPath(part.url).stem}-{row}"
                uri = row_uri(part.url, row, column, name)
                if fault := class_fault(label, names):
                    yield FoundImage.faulty(uri, "", fault)
                else:
                    yield from found_or_faulty(uri, labels_of(label), part.fingerprint)
                row += 1
    if not row:
        logger.warning("dataset: %s has no rows", part.url)


def _has_no_bytes(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether the bytes of all images in a column of structs are null, as the footer tells."""
    if pa.types.is_null(parquet.schema_arrow.field(column).type.field("bytes").type):
        return True
    metadata = parquet.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        leaf = next(c for c in columns if c.path_in_schema == f"{column}.bytes")
        if leaf.statistics is None or leaf.statistics.null_count != group.num_rows:
            return False
    return bool(metadata.num_rows)


def found_or_faulty(uri: str, labels: Sequence[str], mark: str) -> Iterator[FoundImage]:
    """An image under each of its labels; one with a fault if it has none."""
    if not labels:
        yield FoundImage.faulty(uri, "", NO_LABEL)
    yield from (FoundImage(uri, label, mark) for label in labels)


def separator(column: str) -> str | None:
    """What stands between the labels in a column's text: only one called `labels` has several."""
    return "|" if _key(column) == "labels" else None


def labels_in(
    value: object, names: Sequence[str] | None = None, separator: str | None = None
) -> list[str]:
    """The labels of an image: of a list, or of text in which they may be separated."""
    if isinstance(value, str) and separator is None:  # nearly all, and there may be millions
        return [label] if (label := value.strip()) else []
    values: Sequence[object] = value if isinstance(value, list) else [value]
    texts = [label_text(each, names) for each in values]
    parts = [part for text in texts for part in (text.split(separator) if separator else [text])]
    return list(dict.fromkeys(label for part in parts if (label := part.strip())))


def label_text(label: object, names: Sequence[str] | None = None) -> str:
    """A label as text, "" for none; a number stands for the name at its place, if there are any."""
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if names is not None and isinstance(label, int):
        return names[label] if 0 <= label < len(names) else ""
    if isinstance(label, bytes):
        return _decoded(label).strip()
    is_number = isinstance(label, bool | int) or (
        isinstance(label, float) and not math.isnan(label)
    )
    return str(label) if is_number else ""


def class_fault(label: object, names: Sequence[str] | None) -> str | None:
    """Why a class number stands for no label, None for all others; -1 says that there is none."""
    for number in label if isinstance(label, list) else [label]:
        if names is not None and isinstance(number, int | float) and number >= len(names):
            return f"its class number {number} is none of the {len(names)} that its file names"
    return None


def _decoded(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        return ""


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a column's label numbers, where the `huggingface` metadata has them."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        feature = info["info"]["features"][column]
        names = (feature.get("feature") or feature)["names"]  # of a list, or of one label
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
