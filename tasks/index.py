"""Index new images into dataset shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from diffmining_core.images import shards
from diffmining_core.images.shards import FoundImage, ShardImage
from diffmining_core.store.ledger import Attempt, finished, read_manifests, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "index"
TABLE = "shard.parquet"


@dataclass(frozen=True)
class Shard:
    """A dataset shard by reference; its table stays in storage.

    `content_id` names its images and labels whatever their place; `labels` counts its good images
    per label.
    """

    key: str
    content_id: str
    labels: tuple[tuple[str, int], ...]
    set_aside: int

    @property
    def name(self) -> str:
        """A short name for logs and run names."""
        return self.key[:8]

    @property
    def images(self) -> int:
        """Good images."""
        return sum(count for _, count in self.labels)


def index_unit(found: Sequence[FoundImage]) -> Unit:
    """The unit of one shard: these files with these fingerprints, in this order."""
    files = "\n".join(f"{f.uri}\t{f.label}\t{f.fingerprint}" for f in found)
    digest = hashlib.sha256(files.encode()).hexdigest()
    return Unit(STAGE, shards.ALGO, (), {"files": digest})


@stage_task(STAGE)
def index(root: str, found: Sequence[FoundImage], max_bad_share: float) -> Done:
    """Read, check and publish one shard of new images."""

    def produce(attempt: Attempt) -> None:
        with Progress("index", len(found), "images") as progress:
            table = shards.index_shard(found, progress.advance)
        shards.check_set_aside(table, max_bad_share)
        attempt.write_table(TABLE, table)
        good = shards.good(table)
        attempt.counts["images"] = good.num_rows
        attempt.counts["set_aside"] = table.num_rows - good.num_rows
        attempt.facts["content_id"] = shards.shard_content_id(table)
        counted = good.column("label").value_counts().to_pylist()
        attempt.facts["labels"] = {row["values"]: row["counts"] for row in counted}

    return fill(root, index_unit(found), produce)


def known_shards(root: str) -> dict[str, pa.Table]:
    """The tables of all shards ever indexed at this root, by key."""
    opened = open_root(root)
    return {m.key: read_table(opened, m, TABLE) for m in read_manifests(opened, STAGE)}


def shard_reference(root: str, key: str) -> Shard:
    """The reference of a published shard."""
    manifest = finished(open_root(root), STAGE, key)
    return Shard(
        key,
        manifest.facts["content_id"],
        tuple(sorted(manifest.facts["labels"].items())),
        manifest.counts["set_aside"],
    )


def shard_table(root: Root, shard: Shard) -> pa.Table:
    """All rows of a shard, those set aside too."""
    manifest = finished(root, STAGE, shard.key)
    return read_table(root, manifest, TABLE)


def good_images(root: Root, shard: Shard) -> list[ShardImage]:
    """The images of a shard that were not set aside."""
    return shards.images_of(shards.good(shard_table(root, shard)))


def uris(root: Root, dataset: Sequence[Shard], wanted: set[str]) -> dict[str, str]:
    """Where the images with these ids are, read shard by shard."""
    found: dict[str, str] = {}
    for shard in dataset:
        for image in good_images(root, shard):
            if image.image_id in wanted:
                found.setdefault(image.image_id, image.uri)
    return found


def set_aside_rows(root: Root, dataset: Sequence[Shard]) -> Iterator[tuple[str, str]]:
    """(uri, reason) of every image set aside."""
    for shard in dataset:
        if not shard.set_aside:
            continue
        table = shard_table(root, shard)
        for uri, reason in zip(
            table.column("uri").to_pylist(), table.column("set_aside").to_pylist(), strict=True
        ):
            if reason is not None:
                yield uri, reason
