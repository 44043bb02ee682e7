"""The rows of tables in many forms, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import opened_parquet, parquet_batches
from diffmining_core.images.sources.layouts import Table
from diffmining_core.images.sources.text_tables import (
    UNDECODED,
    TextTable,
    is_decoded,
    opened_text,
    table_suffix,
)
from diffmining_core.store.roots import explained

Record: TypeAlias = Mapping[str, Any]
"""A row's values by their columns."""

BATCH = 10_000


class Row(NamedTuple):
    """A row of a table; place: in its file, as `line=7`; fault: why its values cannot be read."""

    place: str
    values: Record
    fault: str | None = None


def rows(file: str, table: Table, columns: Sequence[Sequence[str]] = ()) -> Iterator[Row]:
    """The rows of the file at a path or URL, read as they are asked for.

    columns: those that are needed, each by the names that it may have; the first of them names the
    images. A JSON file is read whole, and its records may lack any. InputError if it is no such
    table.
    """
    suffix = table_suffix(file)
    with explained(file):
        if suffix == ".parquet":
            yield from _parquet_rows(file, columns)
        elif suffix == ".json":
            yield from _json_rows(file, table)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _json_lines(file)
        else:
            delimiter = table.delimiter or ("\t" if suffix == ".tsv" else ",")
            yield from _text_rows(file, table, delimiter, columns)


def listed_names(file: str) -> Iterator[str]:
    """The names in a list: a JSON list, or text with one a line."""
    with explained(file):
        if table_suffix(file) == ".json":
            names = _json(file)
            if not isinstance(names, list):
                raise InputError(f"{file}: expected a JSON list of names, found {_kind(names)}")
            yield from map(str, names)
            return
        with opened_text(file) as text:
            for number, line in enumerate(text, start=1):
                if not is_decoded(line):
                    raise InputError(f"{file}: line {number}: {UNDECODED}; save the list as UTF-8")
                if name := line.strip():
                    yield name


def _text_rows(
    file: str, table: Table, delimiter: str, columns: Sequence[Sequence[str]]
) -> Iterator[Row]:
    with opened_text(file) as text:
        read = TextTable(file, text, delimiter, table.columns, table.heading)
        names = read.names
        places = [_place(file, names, choices) for choices in columns]
        for line, fields, fault in read.rows(*places[:1]):
            yield Row(f"line={line}", dict(zip(names, fields, strict=False)), fault)


def _place(file: str, names: Sequence[str], choices: Sequence[str]) -> int:
    """The number of the first of the columns with these names; InputError if there is none, or if
    two have the same name."""
    wanted = " or ".join(f"`{name}`" for name in choices)
    found = [name for name in choices if name in names]
    if not found:
        raise InputError(
            f"{file}: expected a column {wanted}, which its recipe reads, found {', '.join(names)}"
        )
    if twice := next((name for name in found if names.count(name) > 1), None):
        raise InputError(f"{file}: two of its columns are called `{twice}`; rename one of them")
    return names.index(found[0])


def _json(file: str) -> Any:
    with opened_text(file) as text:
        try:
            return json.load(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{file} is no readable JSON ({error}); download or write it again"
            ) from error


def _json_rows(file: str, table: Table) -> Iterator[Row]:
    records = _json(file)
    if isinstance(records, dict):
        key = table.key or "name"
        records = [_record(file, record) | {key: name} for name, record in records.items()]
    if not isinstance(records, list):
        raise InputError(
            f"{file}: expected records in JSON, found {_kind(records)}; give a list of objects, or "
            "objects by name"
        )
    for number, record in enumerate(records):
        yield Row(f"row={number}", _record(file, record))


def _json_lines(file: str) -> Iterator[Row]:
    with opened_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json_line(f"line={number}", line)


def _json_line(place: str, line: str) -> Row:
    if not is_decoded(line):
        return Row(place, {}, UNDECODED)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Row(place, {}, "its line is no JSON")
    if not isinstance(record, dict):
        return Row(place, {}, f"its row is no JSON object but {_kind(record)}")
    return Row(place, record)


def _record(file: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{file}: expected a JSON object for each row, found {_kind(record)}")
    return record


def _kind(value: Any) -> str:
    kinds = {"dict": "an object", "list": "a list", "str": "text"}
    return kinds.get(type(value).__name__, "a number or nothing")


def _parquet_rows(file: str, columns: Sequence[Sequence[str]]) -> Iterator[Row]:
    with opened_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        for choices in columns:
            _place(file, names, choices)
        number = 0
        for batch in parquet_batches(parquet, BATCH, names):
            for values in batch.to_pylist():
                yield Row(f"row={number}", values)
                number += 1
