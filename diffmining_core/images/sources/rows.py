"""The rows of tables in many forms, one after the other."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import opened, opened_parquet, parquet_batches
from diffmining_core.images.sources.layouts import Table
from diffmining_core.store.roots import explained

Record: TypeAlias = Mapping[str, Any]
"""A row's values by their columns."""

AHEAD = 8 * 2**20
"""Bytes that are fetched at once from a file that is not on this machine."""

BATCH = 10_000


def rows(file: str, table: Table) -> Iterator[Record]:
    """The rows of the file at a path or URL, read as they are asked for.

    A JSON file is read whole. InputError if it is no such table.
    """
    suffix = PurePosixPath(file.removesuffix(".gz")).suffix
    with explained(file):
        try:
            if suffix == ".parquet":
                yield from _parquet_rows(file)
            elif suffix == ".json":
                yield from _json_rows(file, table)
            elif suffix in (".jsonl", ".ndjson"):
                with _text(file) as lines:
                    yield from (_record(file, json.loads(line)) for line in lines if line.strip())
            else:
                delimiter = table.delimiter or ("\t" if suffix == ".tsv" else ",")
                yield from _text_rows(file, table, delimiter)
        except (csv.Error, json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise
            raise InputError(f"{file} is no readable table ({error})") from error


def listed_names(file: str) -> Iterator[str]:
    """The names in a list: a JSON list, or text with one a line."""
    with explained(file):
        if not file.removesuffix(".gz").endswith(".json"):
            with _text(file) as lines:
                yield from (name for line in lines if (name := line.strip()))
            return
        with _text(file) as text:
            names = json.load(text)
        if not isinstance(names, list):
            raise InputError(f"{file}: expected a JSON list of names, found {_kind(names)}")
        yield from map(str, names)


@contextmanager
def _text(file: str) -> Iterator[io.TextIOWrapper]:
    with opened(file, AHEAD) as handle:
        data = gzip.GzipFile(fileobj=handle) if file.endswith(".gz") else handle
        with io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
            yield text


def _text_rows(file: str, table: Table, delimiter: str) -> Iterator[Record]:
    """Names and values are paired from the left: published headings are longer than their rows."""
    with _text(file) as text:
        lines = csv.reader(text, delimiter=delimiter)
        names: Iterable[str] = table.columns
        if table.heading:
            heading = next(lines, None)
            if heading is None:
                raise InputError(f"{file} is empty")
            names = names or [name.strip() for name in heading]
        yield from (dict(zip(names, line, strict=False)) for line in lines if line)


def _json_rows(file: str, table: Table) -> Iterator[Record]:
    with _text(file) as text:
        records = json.load(text)
    if isinstance(records, dict):
        for name, record in records.items():
            yield {**_record(file, record), table.key or "name": name}
    elif isinstance(records, list):
        yield from (_record(file, record) for record in records)
    else:
        raise InputError(f"{file}: expected records in JSON, found {_kind(records)}")


def _record(file: str, record: Any) -> Record:
    if not isinstance(record, dict):
        raise InputError(f"{file}: expected a JSON object for each row, found {_kind(record)}")
    return record


def _kind(value: Any) -> str:
    kinds = {"dict": "an object", "list": "a list", "str": "text"}
    return kinds.get(type(value).__name__, "a number or nothing")


def _parquet_rows(file: str) -> Iterator[Record]:
    with opened_parquet(file) as parquet:
        for batch in parquet_batches(parquet, BATCH, parquet.schema_arrow.names):
            yield from batch.to_pylist()
