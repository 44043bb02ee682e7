"""The top patches per label over all shards: highest, lowest and a seeded random choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.selection import ALGO, TopPatches
from diffmining_core.store.ledger import Attempt, finished, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import patches
from tasks.index import Shard, good_images
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "selection"
TABLE = "selection.parquet"


def selection_unit(
    dataset: Sequence[Shard], patches_keys: Sequence[str], top: int, seed: int
) -> Unit:
    """The unit of one choice of shards; the shards' own keys enter because the table has uris."""
    inputs = (*(shard.key for shard in dataset), *patches_keys)
    return Unit(STAGE, ALGO, inputs, {"top": top, "seed": seed})


@stage_task(STAGE)
def select(
    root: str, dataset: Sequence[Shard], patches_keys: Sequence[str], top: int, seed: int
) -> Done:
    """Merge the patch tables of `dataset`, whose patches are the units `patches_keys`."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        best = TopPatches.empty(top, seed)
        with Progress("selection", len(dataset), "shards") as progress:
            for shard, key in zip(dataset, patches_keys, strict=True):
                manifest = finished(opened, patches.STAGE, key)
                uris = {image.image_id: image.uri for image in good_images(opened, shard)}
                best = best.add(read_table(opened, manifest, patches.TABLE), uris)
                progress.advance()
        table = best.table()
        attempt.write_table(TABLE, table)
        attempt.counts["patches"] = table.num_rows
        attempt.facts["labels"] = {
            label: highest_digest(of_label(table, label, "highest"))
            for label in sorted(table.column("label").unique().to_pylist())
        }

    return fill(root, selection_unit(dataset, patches_keys, top, seed), produce)


def selected(root: Root, key: str) -> pa.Table:
    """The table of a published selection."""
    manifest = finished(root, STAGE, key)
    return read_table(root, manifest, TABLE)


def label_digests(root: str, key: str) -> dict[str, str]:
    """Per label with patches, the digest of which ones are its highest."""
    manifest = finished(open_root(root), STAGE, key)
    digests: dict[str, str] = manifest.facts["labels"]
    return digests


def of_label(table: pa.Table, label: str, kind: str) -> pa.Table:
    """The rows of one label and kind, by rank."""
    rows = table.filter((pc.field("label") == label) & (pc.field("kind") == kind))
    return rows.sort_by("label_rank")


def highest_digest(highest: pa.Table) -> str:
    """What identifies a label's highest patches, wherever their images lie."""
    columns = ("image_id", "y", "x", "size", "typicality")
    rows = zip(*(highest.column(name).to_pylist() for name in columns), strict=True)
    return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()
