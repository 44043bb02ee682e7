"""Index a dataset into shards: what is new since the last time is read, checked and published."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.images import shards
from diffmining_core.images.shards import FoundImage, KeptShard, KnownShard, ShardImage
from diffmining_core.images.sources import open_source
from diffmining_core.store.ledger import (
    Attempt,
    Manifest,
    finished,
    published,
    read_manifest,
    read_manifests,
    read_table,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import plan_stage
from diffmining_core.store.units import Unit
from tasks.progress import Progress
from tasks.units import Done, Failures, fill, noted, stage_task

STAGE = "index"
PUBLISHERS = 8
"""Shards that are published while the next are read: storage elsewhere answers slowly."""
TABLE = "shard.parquet"

DATASET_STAGE = "dataset"
DATASET_ALGO = "dataset-1"
DATASET_TABLE = "shards.parquet"

DATASET_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the shard's index unit
        ("indexed_id", pa.string()),  # content id of all rows of its table
        ("content_id", pa.string()),  # content id of the rows that still belong to the dataset
        ("dropped", pa.list_(pa.int32())),  # numbers of the rows that do not
        ("labels", pa.string()),  # JSON: good images per label
        ("set_aside", pa.int32()),  # images that cannot be used
        ("declared", pa.int32()),  # good images that nobody has opened yet
    ]
)


@dataclass(frozen=True)
class Shard:
    """A dataset shard by reference; its table stays in storage.

    `content_id` names its images and labels whatever their place. Rows that have left the dataset
    since it was indexed, or got another label, are `dropped` (their numbers); with them its content
    was `indexed_id`. `labels` counts its good images per label.
    """

    key: str
    indexed_id: str
    content_id: str
    dropped: tuple[int, ...]
    labels: tuple[tuple[str, int], ...]
    set_aside: int
    declared: int

    @property
    def name(self) -> str:
        """A short name for logs and run names."""
        return self.key[:8]

    @property
    def images(self) -> int:
        """Good images."""
        return sum(count for _, count in self.labels)


def index_unit(found: Sequence[FoundImage]) -> Unit:
    """The unit of one shard: these images as they were found, in this order."""
    digest = hashlib.sha256()
    for image in found:
        digest.update(repr(image).encode() + b"\n")
    return Unit(STAGE, shards.ALGO, (), {"files": digest.hexdigest()})


def dataset_unit(source_digest: str, known: set[str]) -> Unit:
    """The unit of one state of the dataset, cut into shards of which `known` are indexed."""
    keys = hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()
    return Unit(DATASET_STAGE, DATASET_ALGO, (source_digest, keys), {})


@stage_task(STAGE)
def index(root: str, dataset: str, shard_rows: int, max_bad_share: float) -> list[Done]:
    """Index what is new in the dataset; the last of the units says which shards it now has.

    Nothing is read where nothing has changed. A shard with too many bad images stops no other; the
    first such is raised in the end.
    """
    opened = open_root(root)
    source = open_source(dataset)
    known = published(opened, STAGE)
    unit = dataset_unit(source.digest, known)
    if manifest := read_manifest(opened, DATASET_STAGE, unit.key):
        return [Done(DATASET_STAGE, unit.key, False, manifest.seconds, dict(manifest.counts))]

    plan = source.plan(known_shards(opened), shard_rows)
    done: list[Done] = []
    failures = Failures()
    publishing: deque[tuple[Unit, Future[Done]]] = deque()

    def settle() -> None:
        unit, future = publishing.popleft()
        with failures.of(unit):
            done.append(future.result())

    with Progress(STAGE, plan.images, "images") as progress, ThreadPoolExecutor(PUBLISHERS) as pool:
        for new in plan.new:
            unit = index_unit(new.images)
            if unit.key in known:  # of a file of which not all pieces are
                done.append(Done(STAGE, unit.key, computed=False))
                progress.advance(len(new.images))
                continue
            with failures.of(unit), noted(opened, unit):
                table = shards.index_shard(new.images, progress.advance)
                shards.check_set_aside(table, max_bad_share)
                write = partial(_write_shard, new.part, table)
                publishing.append((unit, pool.submit(fill, root, unit, write)))
            if len(publishing) > PUBLISHERS:
                settle()
        while publishing:
            settle()
    failures.raise_for(len(done) + len(failures))
    kept = [*plan.keep, *(KeptShard(unit.key, ()) for unit in done)]
    plan_stage(opened, STAGE, [shard.key for shard in kept])
    # Another process may have indexed some between the listing and the reading: those are kept too.
    unit = dataset_unit(source.digest, known | {shard.key for shard in kept})
    plan_stage(opened, DATASET_STAGE, [unit.key])
    return [*done, fill(root, unit, partial(_write_dataset, opened, kept))]


def _write_shard(part: str | None, table: pa.Table, attempt: Attempt) -> None:
    attempt.write_table(TABLE, table)
    good = shards.good(table)
    attempt.counts["images"] = good.num_rows
    attempt.counts["set_aside"] = table.num_rows - good.num_rows
    attempt.counts["declared"] = _declared(good)
    attempt.facts["part"] = part
    attempt.facts["content_id"] = shards.shard_content_id(table)
    attempt.facts["labels"] = _label_counts(good)


def _declared(good: pa.Table) -> int:
    return pc.sum(good.column("declared")).as_py() or 0


def _label_counts(good: pa.Table) -> dict[str, int]:
    counted = good.column("label").value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in counted}


def _write_dataset(root: Root, kept: Sequence[KeptShard], attempt: Attempt) -> None:
    manifests = {manifest.key: manifest for manifest in read_manifests(root, STAGE)}
    rows = [_dataset_row(root, manifests[shard.key], shard.dropped) for shard in kept]
    # By content, so that neither the folder's place nor the order of arrival decides anything.
    rows.sort(key=lambda row: (row["content_id"], row["key"]))
    attempt.write_table(DATASET_TABLE, pa.Table.from_pylist(rows, schema=DATASET_SCHEMA))
    attempt.counts["shards"] = len(rows)
    attempt.counts["images"] = sum(sum(json.loads(row["labels"]).values()) for row in rows)
    attempt.counts["set_aside"] = sum(row["set_aside"] for row in rows)
    attempt.counts["declared"] = sum(row["declared"] for row in rows)


def _dataset_row(root: Root, manifest: Manifest, dropped: Sequence[int]) -> dict[str, Any]:
    content_id, labels = manifest.facts["content_id"], manifest.facts["labels"]
    row = {"key": manifest.key, "indexed_id": content_id, "dropped": list(dropped)}
    set_aside, declared = manifest.counts["set_aside"], manifest.counts["declared"]
    if dropped:
        live = _without(read_table(root, manifest, TABLE), dropped)
        good = shards.good(live)
        content_id, labels = shards.shard_content_id(live), _label_counts(good)
        set_aside, declared = live.num_rows - good.num_rows, _declared(good)
    return row | {
        "content_id": content_id,
        "labels": json.dumps(labels, sort_keys=True),
        "set_aside": set_aside,
        "declared": declared,
    }


def known_shards(root: Root) -> list[KnownShard]:
    """All shards ever indexed at this root; their tables are read only when asked for."""
    return [
        KnownShard(
            key=manifest.key,
            part=manifest.facts["part"],
            rows=partial(read_table, root, manifest, TABLE),
        )
        for manifest in read_manifests(root, STAGE)
        if manifest.algo == shards.ALGO  # the tables of another are of another form
    ]


def dataset_shards(root: str, key: str) -> list[Shard]:
    """The shards of a published state of the dataset, by content."""
    opened = open_root(root)
    table = read_table(opened, finished(opened, DATASET_STAGE, key), DATASET_TABLE)
    return [
        Shard(
            key=row["key"],
            indexed_id=row["indexed_id"],
            content_id=row["content_id"],
            dropped=tuple(row["dropped"]),
            labels=tuple(sorted(json.loads(row["labels"]).items())),
            set_aside=row["set_aside"],
            declared=row["declared"],
        )
        for row in table.to_pylist()
    ]


def shard_table(root: Root, shard: Shard) -> pa.Table:
    """The rows of a shard that belong to the dataset, those set aside too."""
    manifest = finished(root, STAGE, shard.key)
    return _without(read_table(root, manifest, TABLE), shard.dropped)


def _without(table: pa.Table, dropped: Sequence[int]) -> pa.Table:
    gone = set(dropped)
    return table.take([row for row in range(table.num_rows) if row not in gone]) if gone else table


def good_images(root: Root, shard: Shard) -> list[ShardImage]:
    """The images of a shard that were not set aside."""
    return shards.images_of(shards.good(shard_table(root, shard)))


def set_aside_rows(root: Root, dataset: Sequence[Shard]) -> Iterator[tuple[str, str]]:
    """(uri, reason) of every image that indexing set aside."""
    for shard in dataset:
        if not shard.set_aside:
            continue
        table = shard_table(root, shard)
        for uri, reason in zip(
            table.column("uri").to_pylist(), table.column("set_aside").to_pylist(), strict=True
        ):
            if reason is not None:
                yield uri, reason
