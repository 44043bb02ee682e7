"""How well maps and patches fit a known answer, whichever kind it is: for the studies."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.evaluation import masks, planted
from diffmining_core.evaluation.masks import MaskFolder, Masks
from diffmining_core.evaluation.planted import PixelScores
from diffmining_core.images.addresses import read_bytes
from diffmining_core.localization.truth import BoxMasks
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import finished
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import Root, open_root
from tasks import typicality
from tasks.evaluation import BOXES, PLANTED, TruthReference
from tasks.index import good_images

ALGO = f"{planted.ALGO} {masks.ALGO}"

Uris = Mapping[tuple[str, str], str]
"""The address of each image by (image_id, label)."""


@dataclass(frozen=True)
class Measure:
    """How maps and selections are held against one kind of truth."""

    pixels: Callable[[RaggedMaps, Uris], dict[str, PixelScores]]
    hits: Callable[[Any], dict[str, float]]


def box_truth(root: str, dataset: Sequence[Shard], url: str) -> TruthReference | None:
    """The boxes of the images as a known answer about the dataset at `url`; None without a box.

    Its digest is of all the boxes, so that one that is corrected is another answer.
    """
    opened, digest, boxes = open_root(root), hashlib.sha256(), 0
    for shard in dataset:
        for image in good_images(opened, shard):
            if image.boxes:
                known = [image.image_id, image.label, image.width, image.height, image.boxes]
                digest.update(json.dumps(known).encode() + b"\n")
                boxes += len(image.boxes)
    return TruthReference(BOXES, url, digest.hexdigest()) if boxes else None


def measure_of(
    root: Root, dataset: Sequence[Shard], truth: TruthReference, size: int, cell: int
) -> Measure:
    """The measure of a truth, for images of the model's size `size` and maps of `cell` pixels."""
    if truth.kind == PLANTED:
        table = planted_table(truth)
        return Measure(
            pixels=lambda maps, uris: {"": planted.score_pixels(maps, uris, table, cell)},
            hits=lambda selection: planted.hits(selection, table),
        )
    known: Masks = (
        BoxMasks.of(image for shard in dataset for image in good_images(root, shard))
        if truth.kind == BOXES
        else MaskFolder(truth.url)
    )
    return Measure(
        pixels=lambda maps, uris: masks.score_pixels(maps, uris, known, size),
        hits=lambda selection: masks.hits(selection, known, size),
    )


def planted_table(truth: TruthReference) -> pa.Table:
    """The table of planted elements."""
    return pq.read_table(pa.BufferReader(read_bytes(truth.url)))


def pixel_scores(
    root: Root, dataset: Sequence[Shard], typicality_keys: Sequence[str], measure: Measure
) -> dict[str, PixelScores]:
    """The scores of all maps by label, "" where the truth is not told apart by label.

    InputError if no image that was mined has a known answer.
    """
    by_label: defaultdict[str, PixelScores] = defaultdict(PixelScores.empty)
    for shard, key in zip(dataset, typicality_keys, strict=True):
        uris = {(image.image_id, image.label): image.uri for image in good_images(root, shard)}
        maps = read_maps(root, finished(root, typicality.STAGE, key))
        for label, scores in measure.pixels(maps, uris).items():
            by_label[label] = by_label[label].merge(scores)
    if not by_label:
        raise InputError(
            "the masks or boxes should be of images that were mined, but none is; give the folder "
            "of masks that mirrors the dataset's, with LABEL/STEM.png for LABEL/STEM.jpg, or boxes "
            "that cover a pixel"
        )
    return dict(by_label)


def together(by_label: Mapping[str, PixelScores]) -> PixelScores:
    """The scores of all labels."""
    return reduce(PixelScores.merge, by_label.values())
