"""CSV: one file for each table, for spreadsheets and everything else."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from diffmining_core.results.exports.target import file_of
from diffmining_core.results.opened import MinedResults
from diffmining_core.store.roots import Root

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""A spreadsheet may take text that begins so for a formula; a text with "'" before it never."""


def export_csv(results: MinedResults, target: Root) -> None:
    """Write `TABLE.csv` for every table of the page, in UTF-8.

    Texts with commas, quotes or line breaks are quoted. Before a text that a spreadsheet could take
    for a formula stands an apostrophe, and before one that begins with an apostrophe a second.
    """
    for table in results.tables:
        with (
            file_of(target, f"{table}.csv") as path,
            path.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file)
            for row in _rows(results, table):
                writer.writerow(row)


def _rows(results: MinedResults, table: str) -> Iterator[list[Any]]:
    """The names of the columns, then the values."""
    for place, batch in enumerate(results.batches(table)):
        if not place:
            yield batch.schema.names
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield [_plain(value) for value in row]


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
