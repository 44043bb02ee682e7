"""How well maps and patches fit a known answer, whichever kind it is: for the studies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.evaluation import masks, planted
from diffmining_core.evaluation.masks import MaskFolder
from diffmining_core.evaluation.planted import PixelScores
from diffmining_core.images.addresses import read_bytes
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import finished
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import Root
from tasks import typicality
from tasks.evaluation import MASKS, TruthReference
from tasks.index import good_images

ALGO = f"{planted.ALGO} {masks.ALGO}"

Uris = Mapping[tuple[str, str], str]
"""The address of each image by (image_id, label)."""


@dataclass(frozen=True)
class Measure:
    """How maps and selections are held against one kind of truth."""

    pixels: Callable[[RaggedMaps, Uris], dict[str, PixelScores]]
    hits: Callable[[Any], dict[str, float]]


def measure_of(truth: TruthReference, size: int, cell: int) -> Measure:
    """The measure of a truth, for images of the model's size `size` and maps of `cell` pixels."""
    if truth.kind == MASKS:
        folder = MaskFolder(truth.url)
        return Measure(
            pixels=lambda maps, uris: masks.score_pixels(maps, uris, folder, size),
            hits=lambda selection: masks.hits(selection, folder, size),
        )
    table = planted_table(truth)
    return Measure(
        pixels=lambda maps, uris: {"": planted.score_pixels(maps, uris, table, cell)},
        hits=lambda selection: planted.hits(selection, table),
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
            "the masks should be of images that were mined, but none is; give the folder that "
            "mirrors the dataset's, with LABEL/STEM.png for LABEL/STEM.jpg"
        )
    return dict(by_label)


def together(by_label: Mapping[str, PixelScores]) -> PixelScores:
    """The scores of all labels."""
    return reduce(PixelScores.merge, by_label.values())
