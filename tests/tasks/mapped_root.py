"""A root with dataset shards and their maps, as if images had been indexed and measured there."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffmining_core.images import shards
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import index

LABELS = ("almara", "borvik", "cendria")
IMAGES = 9

OPTIONS = {"size": 20, "per_image": 2, "seed": 3, "cell": 8}


def map_shard(
    root: Path | str,
    number: int,
    labels: tuple[str, ...] = LABELS,
    images_of: int | None = None,
    folder: Path | str = "/images",
) -> tuple[Shard, str]:
    """Dataset shard `number`, images of the labels in turn, and the key of its typicality maps.

    images_of: the number of the shard that has the same images; its own if unset. folder: where the
    images are said to be, as NUMBER/ROW.png of 80 × 64 px.
    """
    of = number if images_of is None else images_of
    images = [(_id(f"{of} {row}"), labels[row % len(labels)]) for row in range(IMAGES)]
    return _index(root, number, images, folder), _measure(root, number, images)


def without(shard: Shard, *dropped: int) -> Shard:
    """The shard after rows of it have left the dataset."""
    labels = Counter(dict(shard.labels))
    order = [label for label, _ in shard.labels]
    for row in dropped:
        labels[order[row % len(order)]] -= 1
    return replace(
        shard,
        content_id=f"{shard.indexed_id} without {dropped}",
        dropped=dropped,
        images=shard.images - len(dropped),
        labels=tuple(sorted((+labels).items())),
    )


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _index(
    root: Path | str, number: int, images: list[tuple[str, str]], folder: Path | str
) -> Shard:
    def produce(attempt: Attempt) -> None:
        values = {
            "image_id": [image_id for image_id, _ in images],
            "uri": [f"{folder}/{number}/{row}.png" for row in range(len(images))],
            "label": [label for _, label in images],
            "width": 80,
            "height": 64,
            "fingerprint": "",
            "set_aside": None,
            "declared": False,
            "boxes": None,
            "detail": None,
            "stored": None,
            "scaled_bits": None,
        }
        columns = [
            value if isinstance(value := values[field.name], list) else [value] * len(images)
            for field in shards.SHARD_SCHEMA
        ]
        attempt.write_table(index.TABLE, pa.table(columns, schema=shards.SHARD_SCHEMA))

    unit = Unit(index.STAGE, "test", (), {"number": number})
    complete(open_root(str(root)), unit, produce)
    labels = tuple(sorted(Counter(label for _, label in images).items()))
    return Shard(unit.key, unit.key, unit.key, (), len(images), labels, set_aside=0, declared=0)


def _measure(root: Path | str, number: int, images: list[tuple[str, str]]) -> str:
    def produce(attempt: Attempt) -> None:
        rng = np.random.default_rng(number)
        maps = [rng.normal(0, 1e-3, (8, 10)).astype(np.float32) for _ in images]
        ids, labels = zip(*images, strict=True)
        write_maps(attempt, RaggedMaps.pack(maps, maps, [1.0] * IMAGES, ids, labels, n_draws=2))

    unit = Unit("typicality", "test", (str(number),), {})
    complete(open_root(str(root)), unit, produce)
    return unit.key
