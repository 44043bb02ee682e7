"""The top patches per label over all shards: highest, lowest and a seeded random choice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.growth import Part, Update, plan_update
from diffmining_core.patches.selection import (
    ALGO,
    RANKED_SCHEMA,
    SELECTION_SCHEMA,
    Group,
    Image,
    TopPatches,
    in_groups,
)
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, Manifest, finished, read_manifests, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import patches
from tasks.index import good_images
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "selection"
TABLE = "selection.parquet"
SHARDS_TABLE = "shards.parquet"
"""The shard that each row of the selection is from, for the next selection to build on."""

SHARDS_AT_ONCE = 8
"""Merged on a worker before their patches travel."""

WEIGHED = 3
"""Earlier selections whose tables are read to find the one that leaves the least to do."""


@dataclass(frozen=True)
class Share:
    """What one shard is to add: all its patches that count, or those of some groups."""

    shard: Shard
    patches_key: str
    groups: frozenset[Group] | None


def selection_unit(
    dataset: Sequence[Shard], patches_keys: Sequence[str], top: int, seed: int
) -> Unit:
    """The unit of one choice of shards; the shards' own keys enter because the table has uris.

    Its inputs are the keys of the shards, then those of their patches in the same order.
    """
    inputs = (*(shard.key for shard in dataset), *patches_keys)
    dropped = {shard.key: list(shard.dropped) for shard in dataset if shard.dropped}
    return Unit(STAGE, ALGO, inputs, {"top": top, "seed": seed, "dropped": dropped})


@stage_task(STAGE)
def select(
    root: str,
    dataset: Sequence[Shard],
    patches_keys: Sequence[str],
    top: int,
    seed: int,
    workers: int = 0,
) -> Done:
    """Merge the patch tables of `dataset`, whose patches are the units `patches_keys`.

    Builds on the earlier selection that leaves the fewest tables to read; the result is the same
    as from all of them. Dask reads and merges them (`workers` as in `tasks.dask_client`). Held at a
    time are a few times labels × kinds × `top` rows, and one table for each of Dask's threads.
    """
    unit = selection_unit(dataset, patches_keys, top, seed)

    def produce(attempt: Attempt) -> None:
        from tasks.dask_client import dask_client, outcomes

        opened = open_root(root)
        update = _least_update(opened, unit, dataset, patches_keys)
        shares = list(_shares(update, dataset, patches_keys))
        best = TopPatches.of(update.kept, top, seed)
        chunks = [shares[i : i + SHARDS_AT_ONCE] for i in range(0, len(shares), SHARDS_AT_ONCE)]
        if chunks:
            with (
                dask_client(workers if len(chunks) > 1 else 0) as client,
                Progress(STAGE, len(shares), "shards") as progress,
            ):
                work = partial(merged, opened.url, top, seed)
                for chunk, outcome in outcomes(client, work, chunks):
                    if isinstance(outcome, Exception):
                        raise outcome
                    best = best.merge(outcome)
                    progress.advance(len(chunk))
        _write(attempt, best.ranked())
        attempt.counts["tables_read"] = len(shares)

    return fill(root, unit, produce)


def merged(root: str, top: int, seed: int, shares: Sequence[Share]) -> TopPatches:
    """The top patches of a few shards."""
    opened = open_root(root)
    best = TopPatches.empty(top, seed)
    for share in shares:
        manifest = finished(opened, patches.STAGE, share.patches_key)
        table = read_table(opened, manifest, patches.TABLE)
        if share.groups is not None:
            table = table.filter(in_groups(table, share.groups))
        best = best.add(table, _uris(opened, share.shard), share.shard.key)
    return best.settled()


def _uris(root: Root, shard: Shard) -> dict[Image, str]:
    """Where each image of a shard is; of an image that lies there twice the first address."""
    images = sorted(good_images(root, shard), key=lambda image: image.uri, reverse=True)
    return {(image.image_id, image.label): image.uri for image in images}


def image_typicality(root: Root, key: str, dataset: Sequence[Shard]) -> Iterator[pa.Table]:
    """The mean typicality of every image behind a selection, a table for each of its shards.

    Columns image_id, label, uri, typicality; images that have left the dataset have no row.
    """
    parts = _parts(finished(root, STAGE, key))
    for shard in dataset:
        manifest = finished(root, patches.STAGE, parts[shard.key].patches_key)
        table = read_table(root, manifest, patches.IMAGES_TABLE)
        uris = _uris(root, shard)
        pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
        places = pa.array([uris.get(pair) for pair in pairs], pa.string())
        yield table.append_column("uri", places).filter(pc.is_valid(places))


def _write(attempt: Attempt, ranked: pa.Table) -> None:
    table = ranked.select(SELECTION_SCHEMA.names)
    attempt.write_table(TABLE, table)
    attempt.write_table(SHARDS_TABLE, ranked.select(["shard"]))
    attempt.counts["patches"] = table.num_rows
    attempt.facts["labels"] = {
        label: patches_digest(of_label(table, label, "highest"))
        for label in sorted(table.column("label").unique().to_pylist())
    }


def _least_update(
    root: Root, unit: Unit, dataset: Sequence[Shard], patches_keys: Sequence[str]
) -> Update:
    """How to come to the selection `unit` with the fewest tables read."""
    shards = {shard.key: shard for shard in dataset}
    now = _parts(unit)

    def live_images(shard: str) -> set[Image]:
        return set(_uris(root, shards[shard]))

    anew = Update(RANKED_SCHEMA.empty_table(), frozenset(now), frozenset())
    updates = [
        plan_update(_ranked(root, manifest), _parts(manifest), now, live_images)
        for manifest in _nearest(root, unit)
    ]
    return min(
        [*updates, anew],
        key=lambda update: sum(1 for _ in _shares(update, dataset, patches_keys)),
    )


def _shares(
    update: Update, dataset: Sequence[Shard], patches_keys: Sequence[str]
) -> Iterator[Share]:
    for shard, key in zip(dataset, patches_keys, strict=True):
        labels = {label for label, _ in shard.labels}
        groups = frozenset(group for group in update.groups if group[0] in labels)
        if shard.key in update.added:
            yield Share(shard, key, None)
        elif groups:
            yield Share(shard, key, groups)


def _nearest(root: Root, unit: Unit) -> list[Manifest]:
    """The published selections with the same parameters that differ in the fewest parts."""
    now = set(_parts(unit).items())
    earlier = [
        (len(now ^ parts), manifest.key, manifest)
        for manifest in read_manifests(root, STAGE)
        if _builds_alike(manifest, unit) and now & (parts := set(_parts(manifest).items()))
    ]
    return [manifest for _, _, manifest in sorted(earlier, key=lambda found: found[:2])[:WEIGHED]]


def _builds_alike(manifest: Manifest, unit: Unit) -> bool:
    return (
        manifest.algo == unit.algo
        and manifest.parameters.keys() == unit.parameters.keys()
        and all(manifest.parameters[name] == unit.parameters[name] for name in ("top", "seed"))
    )


def _parts(selection: Unit | Manifest) -> dict[str, Part]:
    """What went into a selection, by shard."""
    half = len(selection.inputs) // 2
    dropped = selection.parameters["dropped"]
    return {
        shard: Part(key, tuple(dropped.get(shard, ())))
        for shard, key in zip(selection.inputs[:half], selection.inputs[half:], strict=True)
    }


def _ranked(root: Root, manifest: Manifest) -> pa.Table:
    """The rows of a published selection with the shard of each (RANKED_SCHEMA)."""
    shard = read_table(root, manifest, SHARDS_TABLE).column("shard")
    return read_table(root, manifest, TABLE).append_column("shard", shard)


def selected(root: Root, key: str) -> pa.Table:
    """The table of a published selection."""
    manifest = finished(root, STAGE, key)
    return read_table(root, manifest, TABLE)


def label_digests(root: str, key: str) -> dict[str, str]:
    """Per label with patches, the digest of which ones are its highest."""
    manifest = finished(open_root(root), STAGE, key)
    digests: dict[str, str] = manifest.facts["labels"]
    return digests


def kind_digests(root: str, key: str, kind: str, first: int) -> dict[str, str]:
    """Per label with patches, the digest of which ones are the first of a kind."""
    table = selected(open_root(root), key)
    return {
        label: patches_digest(of_label(table, label, kind).slice(0, first))
        for label in sorted(table.column("label").unique().to_pylist())
    }


def of_label(table: pa.Table, label: str, kind: str) -> pa.Table:
    """The rows of one label and kind, by rank."""
    rows = table.filter((pc.field("label") == label) & (pc.field("kind") == kind))
    return rows.sort_by("label_rank")


def patches_digest(patches: pa.Table) -> str:
    """What identifies patches, such as a label's highest, wherever their images lie."""
    columns = ("image_id", "y", "x", "size", "typicality")
    rows = zip(*(patches.column(name).to_pylist() for name in columns), strict=True)
    return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()
