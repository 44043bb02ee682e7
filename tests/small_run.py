"""A finished run of seconds: real units and a real page, but of maps and features made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.recipes import MINED
from diffmining_core.results.references import (
    FEATURES,
    FEATURES_TABLE,
    TYPICALITY,
    Results,
    Shard,
)
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.clusters import clusters
from tasks.index import dataset_shards, good_images, index
from tasks.patches import patches
from tasks.report import publish_page, publish_summary, report
from tasks.selection import of_label, select, selected

LABELS = ("almara", "borvik")
HOSTILE = ('=1+1, "one"; <b>&amp;\\', "東京 \u202eé'--", "@a, b")
"""Names of folders, which labels are; those with control characters are set aside before."""

PER_LABEL, SIZE, CELL, PATCH = 9, 64, 8, 20
PLANTED = (16, 24)
"""y and x, in the model-size image, of a bright square that the made-up maps know of."""


def write_photos(folder: Path, labels: Sequence[str]) -> None:
    """9 images of each label, twice the size of the model's; the first has an odd width."""
    for place, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for number in range(PER_LABEL):
            rng = np.random.default_rng([place, number])
            coarse = rng.integers(70, 190, (8, 10, 3)).astype(np.uint8)
            width = 160 if number else 163
            photo = Image.fromarray(coarse).resize((width, 128), Image.Resampling.BICUBIC)
            y, x = (2 * at for at in PLANTED)
            photo.paste((230, 60 * place, 40), (x, y, x + 2 * PATCH, y + 2 * PATCH))
            photo.save(folder / label / f"photo {number}.png")


def finished_run(root: Path | str, photos: Path) -> Results:
    """Index the photos into two shards, make up their maps, and publish the page at the root."""
    url = str(root)
    *_, state = index.fn(url, str(photos), None, MINED, PER_LABEL, 0.0)
    dataset = dataset_shards(url, state.key, state.stage)
    keys = [_measure(url, shard, 1.0) for shard in dataset]
    before_keys = [_measure(url, shard, 0.25) for shard in dataset[:1]]
    options = {"size": PATCH, "per_image": 2, "seed": 3, "cell": CELL}
    picked = [done.key for done in patches.fn(url, keys, options)]
    picked_before = [done.key for done in patches.fn(url, before_keys, options)]
    selection = select.fn(url, dataset, picked, 12, 3)
    before = select.fn(url, dataset[:1], picked_before, 12, 3)
    labels = sorted({label for shard in dataset for label, _ in shard.labels})
    embedded = {label: _embed(url, label, selection.key) for label in labels}
    results = Results(
        dataset=tuple(dataset),
        images=sum(shard.images for shard in dataset),
        size=SIZE,
        typicality=tuple(keys),
        selection=selection.key,
        clusters=tuple(
            (label, clusters.fn(url, label, key, 2).key) for label, key in embedded.items()
        ),
        finetune=None,
        compared=tuple(dataset[:1]),
        typicality_before=tuple(before_keys),
        selection_before=before.key,
    )
    facts = {"model": "tiny", "notes": ["made up"]}
    done = report.fn(url, "What is typical of two places", results, facts, None)
    publish_summary(url, {"report": done.key, "page": publish_page(url, done.key)})
    return results


def _measure(url: str, shard: Shard, strength: float) -> str:
    """Maps that are high where the square is."""
    root = open_root(url)
    images = good_images(root, shard)

    def produce(attempt: Attempt) -> None:
        maps = [_map(image, strength) for image in images]
        ids, labels = [one.image_id for one in images], [one.label for one in images]
        write_maps(attempt, RaggedMaps.pack(maps, maps, [1.0] * len(maps), ids, labels, 2))

    unit = Unit(TYPICALITY, "test", (shard.content_id,), {"strength": strength})
    complete(root, unit, produce)
    return unit.key


def _map(image: ShardImage, strength: float) -> npt.NDArray[np.float32]:
    height, width = load_pixels(image.uri, SIZE, image.image_id).shape[:2]
    rng = np.random.default_rng(int(image.image_id[:8], 16))
    one = rng.normal(0, 2e-4, (height // CELL, width // CELL))
    y, x = (at // CELL for at in PLANTED)
    one[y : y + 2, x : x + 2] += 2e-3
    return (strength * one).astype(np.float32)


def _embed(url: str, label: str, selection: str) -> str:
    """Features of the highest patches, of two kinds."""
    root = open_root(url)
    rows = of_label(selected(root, selection), label, "highest")

    def produce(attempt: Attempt) -> None:
        vectors = np.random.default_rng(1).normal(0, 0.1, (len(rows), 8)).astype(np.float32)
        vectors[:7, 0] += 3
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
        attempt.write_table(FEATURES_TABLE, rows.append_column("feature", column))

    unit = Unit(FEATURES, "test", (selection, "model"), {"label": label})
    complete(root, unit, produce)
    return unit.key
