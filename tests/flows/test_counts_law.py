"""Rows in = rows indexed + rows set aside + rows left out, for every kind of dataset."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_images import photo, tar_of

from diffmining_core.recipes import MINED
from diffmining_core.store.ledger import finished, read_manifests, read_table
from diffmining_core.store.roots import open_root
from flows.index import index_split
from flows.parameters import IndexParameters
from tasks.index import TABLE, index

GOOD, SMALL, BROKEN, UNLABELLED, MISSING, TEXT, RUBBISH, REPEATED = KINDS = (
    "good", "small", "broken", "unlabelled", "missing", "text", "rubbish", "repeated",
)  # fmt: skip

RECIPE = """\
title = "Colours"
[layouts.all]
kind = "table"
table = {{ file = "colours.csv" }}
image_file = "{{uri}}"
label = "label"
"""

Rows = Sequence[str]
Write = Callable[[Rows, Path], tuple[str, int]]
"""Writes a dataset of such rows into a folder; returns its address, and how many rows it has."""


def bytes_of(kind: str, seed: int) -> bytes:
    side = 16 if kind == SMALL else 48
    return b"no image" if kind == BROKEN else photo(seed, side, side)


def as_folder(rows: Rows, folder: Path) -> tuple[str, int]:
    return str(folder), sum(write_file(kind, n, folder) for n, kind in enumerate(rows))


def as_pattern(rows: Rows, folder: Path) -> tuple[str, int]:
    written = [write_file(kind, n, folder / f"part{n % 2}") for n, kind in enumerate(rows)]
    return f"{folder}/*", sum(written)


def write_file(kind: str, n: int, folder: Path) -> int:
    """Whether a file can be such a row, which is then written."""
    names = {TEXT: f"hat/{n}.txt", RUBBISH: f"hat/._{n}.png", UNLABELLED: f"{n}.png"}
    if kind in (MISSING, REPEATED):
        return 0
    path = folder / names.get(kind, f"hat/{n}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes_of(kind, n))
    return 1


def table_rows(rows: Rows, folder: Path) -> list[tuple[str, str]]:
    """The rows of a manifest; the images that it names are written."""
    found = []
    for n, kind in enumerate(rows):
        name = f"photos/{0 if kind == REPEATED else n}.png"
        if kind not in (MISSING, REPEATED, RUBBISH):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes_of(kind, n))
        label = "" if kind == UNLABELLED else "hat"
        found.append(("" if kind == RUBBISH else name, label))
    return found


def as_text(suffix: str, delimiter: str) -> Write:
    def write(rows: Rows, folder: Path) -> tuple[str, int]:
        found = table_rows(rows, folder)
        with (folder / f"t{suffix}").open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("uri", "label"), *found])
        return str(folder / f"t{suffix}"), len(found)

    return write


def as_parquet(rows: Rows, folder: Path) -> tuple[str, int]:
    uris, labels = zip(*table_rows(rows, folder), strict=True)
    pq.write_table(pa.table({"uri": uris, "label": labels}), folder / "t.parquet")
    return str(folder / "t.parquet"), len(uris)


def as_recipe(rows: Rows, folder: Path) -> tuple[str, int]:
    _, count = as_text(".csv", ",")(rows, folder)
    (folder / "t.csv").rename(folder / "colours.csv")
    (folder / "recipe.toml").write_text(RECIPE.format())
    # A file that the table does not name is a row too: it is there, and left out.
    named = {
        (f"photos/{0 if k == REPEATED else n}.png") for n, k in enumerate(rows) if k != RUBBISH
    }
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    return str(folder), count + len(there - named)


def as_tar(rows: Rows, folder: Path) -> tuple[str, int]:
    members: dict[str, bytes] = {}
    count = 0
    for n, kind in enumerate(rows):
        if kind in (MISSING, REPEATED):
            continue
        count += 1
        if kind == RUBBISH:
            members[f"._{n}.png"] = b"rubbish"
            continue
        if kind != TEXT:
            members[f"{n}.png"] = bytes_of(kind, n)
        if kind != UNLABELLED:
            members[f"{n}.cls"] = b"hat"
    (folder / "0.tar").write_bytes(tar_of(members))
    return str(folder / "0.tar"), count


def as_images(rows: Rows, folder: Path) -> tuple[str, int]:
    images = [None if kind == MISSING else bytes_of(kind, n) for n, kind in enumerate(rows)]
    labels = [None if kind == UNLABELLED else "hat" for kind in rows]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels)})
    pq.write_table(table, folder / "images.parquet")
    return str(folder / "images.parquet"), len(rows)


WRITERS: dict[str, Write] = {
    "folder": as_folder, "pattern": as_pattern, "csv": as_text(".csv", ","),
    "tsv": as_text(".tsv", "\t"), "parquet": as_parquet, "recipe": as_recipe, "tar": as_tar,
    "parquet with images": as_images,
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=12)
@given(rows=st.lists(st.sampled_from(KINDS), max_size=12))
def test_every_row_is_indexed_set_aside_or_left_out(kind: str, rows: list[str]) -> None:
    rows = [GOOD, GOOD, *rows]
    with tempfile.TemporaryDirectory() as inner:
        folder, root = Path(inner) / "dataset", str(Path(inner) / "root")
        folder.mkdir()
        dataset, fed = WRITERS[kind](rows, folder)
        recipe = str(folder / "recipe.toml") if kind == "recipe" else None
        parameters = IndexParameters(
            dataset=dataset, root=root, recipe=recipe, shard_rows=4, max_bad_share=1
        )
        units, shards = index_split(parameters, MINED, index.fn)
        opened = open_root(root)
        state = finished(opened, units[-1].stage, units[-1].key)
        tables = {m.key: read_table(opened, m, TABLE) for m in read_manifests(opened, "index")}
        reasons = Counter(
            reason for shard in shards for reason in tables[shard.key]["set_aside"].to_pylist()
        )
    indexed = reasons.pop(None, 0)
    counts, facts = state.counts, state.facts
    assert counts["listed"] == fed
    assert counts["pairs"] == indexed
    assert counts["rows_set_aside"] == reasons.total()
    assert fed == indexed + reasons.total() + counts["left_out"]
    told = {reason: found["count"] for reason, found in facts["set_aside"].items()}
    assert told == reasons
    always_good = {GOOD, TEXT, RUBBISH} if kind == "parquet with images" else {GOOD}
    if "csv" in kind or "tsv" in kind or kind in ("parquet", "recipe"):
        always_good = {GOOD, TEXT}
    if kind == "parquet with images":
        always_good |= {REPEATED}
    assert indexed == sum(row in always_good for row in rows)
