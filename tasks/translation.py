"""The images of a dataset shard redrawn under other labels: a shard of images of its own.

A translated shard is a table like that of an indexed one, a row for each image and each label it is
redrawn as, with the id of the image it comes from; the pictures, lossless, lie beside it.
"""

from __future__ import annotations

import hashlib
import heapq
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images import shards
from diffmining_core.images.addresses import row_uri
from diffmining_core.images.pixels import content_id
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.shards import SHARD_SCHEMA
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_manifests, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.translation import ALGO
from tasks.index import TABLE, good_images, label_counts, part_of
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.typicality import set_aside_images
from tasks.units import Done, fill, stage_task

STAGE = "translation"
RUN_NAME = "translation {shard.name}"
"""Of a task run."""

PART_BYTES = 64 * 2**20
"""Pictures in one file, about; as many are in memory before they are written."""
PICTURES = "image"
"""The column of the pictures."""

TRANSLATED_SCHEMA = pa.schema(
    [
        *SHARD_SCHEMA,
        # Image id of the image that this one was redrawn from.
        pa.field("source_id", pa.string(), nullable=False),
        # In dB, how well the source came back from a shortened inversion; null from the exact one.
        pa.field("reconstruction_psnr", pa.float64()),
    ]
)


def translation_unit(
    shard: Shard, model: ModelReference, targets: Sequence[str], options: dict[str, Any]
) -> Unit:
    """The unit of the images of one shard; `options` are `TranslationOptions`' fields as JSON."""
    return Unit(STAGE, ALGO, (shard.content_id, model.digest), {"targets": [*targets], **options})


def chosen_sources(
    root: str, dataset: Sequence[Shard], labels: Sequence[str], per_label: int, seed: int
) -> list[Shard]:
    """Of each of the labels so many images, drawn by their ids, or all where `per_label` is 0.

    Returns the shards that have some, without the other images. An image counts for the first of
    its labels. The same images are chosen whatever the order of the shards.
    """
    opened = open_root(root)
    lowest: dict[str, list[int]] = {label: [] for label in labels}  # heaps of negative ranks
    for shard in dataset if per_label else ():
        for image in _first_rows(good_images(opened, shard), labels):
            heapq.heappush(lowest[image.label], -_rank(seed, image))
            if len(lowest[image.label]) > per_label:
                heapq.heappop(lowest[image.label])

    def is_chosen(image: ShardImage) -> bool:
        return not per_label or _rank(seed, image) <= -lowest[image.label][0]

    parts = []
    for shard in dataset:
        images = good_images(opened, shard)
        chosen = {one.uri for one in _first_rows(images, labels) if is_chosen(one)}
        if chosen:
            parts.append(part_of(opened, shard, [one for one in images if one.uri in chosen]))
    return parts


def _first_rows(images: Sequence[ShardImage], labels: Sequence[str]) -> list[ShardImage]:
    """The first row of each image, as its rows lie side by side; those with one of the labels."""
    first: dict[str, ShardImage] = {}
    for image in images:
        first.setdefault(image.uri, image)
    return [image for image in first.values() if image.label in labels]


def measured_sources(
    root: str, chosen: Sequence[Shard], keys: Sequence[str]
) -> list[tuple[Shard, str]]:
    """The shards with the keys of their maps, without the images set aside in measuring.

    InputError if no image is left.
    """
    opened = open_root(root)
    sources = []
    for shard, key in zip(chosen, keys, strict=True):
        bad = {uri for uri, _ in set_aside_images(opened, [shard], [key])}
        left = [one for one in good_images(opened, shard) if one.uri not in bad]
        if left:
            sources.append((part_of(opened, shard, left) if bad else shard, key))
    if not sources:
        raise InputError(
            "some images should be left to redraw, but all were set aside when they were measured; "
            "mend them, or give a larger --per-label."
        )
    return sources


def _rank(seed: int, image: ShardImage) -> int:
    digest = hashlib.sha256(f"{seed}/translated/{image.image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


@stage_task(STAGE, RUN_NAME)
def translation(
    root: str,
    shard: Shard,
    model: ModelReference,
    targets: Sequence[str],
    options: dict[str, Any],
    device: Device,
    batch_size: int,
) -> Done:
    """Redraw every image of a shard under each of the targets that is no label of its own."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.translation.shard import (
            Reconstructed,
            TranslationOptions,
            forwards_of,
            shard_translations,
        )

        images = good_images(open_root(root), shard)
        labels = defaultdict(set)
        for image in images:
            labels[image.uri].add(image.label)
        how = TranslationOptions.from_options(options)
        pipeline = loaded(root, model, device)
        before = pipeline.unet_forwards
        total = sum(forwards_of(how, len(set(targets) - own)) for own in labels.values())
        written = _Pictures(attempt)
        psnr: dict[int, float] = {}
        with Progress(f"translation {shard.name}", total, "forwards") as progress:
            made = shard_translations(pipeline, images, targets, how, batch_size, progress.advance)
            for one in made:
                if isinstance(one, Reconstructed):
                    psnr[one.place] = one.psnr
                else:
                    source = images[one.place]
                    written.add(source, one.label, one.pixels, psnr.get(one.place))
        table = written.table()
        attempt.write_table(TABLE, table)
        attempt.counts["images"] = len(labels)
        attempt.counts["translations"] = table.num_rows
        attempt.counts["unet_forwards"] = pipeline.unet_forwards - before
        attempt.facts["content_id"] = shards.shard_content_id(table)
        attempt.facts["labels"] = label_counts(table)
        attempt.facts["precision"] = device.dtype
        if psnr:
            attempt.facts["reconstruction_psnr"] = round(float(np.mean(list(psnr.values()))), 3)

    return fill(root, translation_unit(shard, model, targets, options), produce, device.name)


class _Pictures:
    """Writes pictures into files of some size, and notes a row for each."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.held: list[bytes] = []
        self.rows: list[dict[str, Any]] = []
        self.files = 0

    def add(
        self, source: ShardImage, label: str, pixels: npt.NDArray[np.uint8], psnr: float | None
    ) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        data = buffer.getvalue()
        name = f"{source.image_id}.png"
        self.rows.append(
            {
                "image_id": content_id(data),
                "uri": row_uri(f"pictures-{self.files:04}.parquet", len(self.held), PICTURES, name),
                "label": label,
                "width": source.width,
                "height": source.height,
                "fingerprint": content_id(data),
                "declared": False,
                "source_id": source.image_id,
                "reconstruction_psnr": psnr,
            }
        )
        self.held.append(data)
        if sum(map(len, self.held)) >= PART_BYTES:
            self._write()

    def table(self) -> pa.Table:
        """A table of TRANSLATED_SCHEMA; all pictures are written."""
        if self.held:
            self._write()
        return pa.Table.from_pylist(self.rows, schema=TRANSLATED_SCHEMA)

    def _write(self) -> None:
        pictures = pa.table({PICTURES: pa.array(self.held, pa.binary())})
        self.attempt.write_table(f"pictures-{self.files:04}.parquet", pictures)
        self.files += 1
        self.held = []


def translated_shard(root: str, key: str) -> Shard:
    """The images that a published unit redrew, as a dataset shard."""
    manifest = finished(open_root(root), STAGE, key)
    labels: Mapping[str, int] = manifest.facts["labels"]
    content = str(manifest.facts["content_id"])
    return Shard(
        key=key,
        indexed_id=content,
        content_id=content,
        dropped=(),
        images=manifest.counts["translations"],
        labels=tuple(sorted(labels.items())),
        set_aside=0,
        declared=0,
        stage=STAGE,
    )


def source_ids(root: Root, shard: Shard) -> dict[tuple[str, str], str]:
    """The image id of its source, by image id and label of a redrawn image."""
    table = read_table(root, finished(root, STAGE, shard.key), TABLE)
    columns = (table.column(name).to_pylist() for name in ("image_id", "label", "source_id"))
    return {(image_id, label): source for image_id, label, source in zip(*columns, strict=True)}


def reconstruction_note(root: str, keys: Sequence[str]) -> list[str]:
    """How well images came back from a shortened inversion; nothing of the exact one."""
    manifests = read_manifests(open_root(root), STAGE, keys)
    weighted = [
        (one.counts["images"], float(str(one.facts["reconstruction_psnr"])))
        for one in manifests
        if "reconstruction_psnr" in one.facts
    ]
    if not weighted:
        return []
    mean = sum(images * psnr for images, psnr in weighted) / sum(images for images, _ in weighted)
    return [
        "The inversion was shortened, which changes the result: sampled as they were inverted, "
        f"images come back with a peak signal-to-noise ratio of {mean:.1f} dB."
    ]
