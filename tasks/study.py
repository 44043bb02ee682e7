"""Truth against finetuning steps: what mining finds with a model as it was at several of them."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.evaluation import masks, planted
from diffmining_core.evaluation.masks import MaskFolder
from diffmining_core.evaluation.planted import PixelScores
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import label_patches
from diffmining_core.report.study import Study, StudyPoint, render_study, write_study
from diffmining_core.store.ledger import Attempt, finished, read_json
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import typicality
from tasks.evaluation import MASKS, TruthReference
from tasks.index import Shard, good_images
from tasks.report import PLACE, ROOT_PAGE
from tasks.selection import selected
from tasks.units import Done, fill, stage_task

STAGE = "study"
ALGO = "study-1"
TILES = 8
"""Highest patches shown of each label and step."""

Uris = Mapping[tuple[str, str], str]
"""The address of each image by (image_id, label)."""


@dataclass(frozen=True)
class Mined:
    """What was mined with the model after `step` steps, by the keys of maps and selection."""

    step: int
    typicality: tuple[str, ...]
    selection: str


def study_unit(truth: TruthReference, mined: Sequence[Mined], facts: Mapping[str, Any]) -> Unit:
    """The unit of one study: the truth, the selections it measures, and what the page says."""
    inputs = (truth.digest, *(key for one in mined for key in (*one.typicality, one.selection)))
    steps = [one.step for one in mined]
    return Unit(STAGE, f"{ALGO} {planted.ALGO} {masks.ALGO}", inputs, {"at": steps, **facts})


@stage_task(STAGE)
def study(
    root: str,
    title: str,
    truth: TruthReference,
    dataset: Sequence[Shard],
    mined: Sequence[Mined],
    size: int,
    cell: int,
    facts: Mapping[str, Any],
) -> Done:
    """Measure each model's maps and patches, and publish the page."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        measure = _measure_of(truth, size, cell)
        points = [_point(opened, dataset, one, measure) for one in mined]
        drawn = Study(title, points, _tiles(opened, mined, size), facts)
        with tempfile.TemporaryDirectory() as folder:
            write_study(drawn, Path(folder))
            attempt.write_folder(Path(folder))
        attempt.write_bytes(ROOT_PAGE, render_study(drawn, PLACE).encode())

    return fill(root, study_unit(truth, mined, facts), produce)


def study_numbers(root: str, key: str) -> dict[str, Any]:
    """The numbers of a published study: its points by step, and how it was made."""
    opened = open_root(root)
    numbers: dict[str, Any] = read_json(opened, finished(opened, STAGE, key), "study.json")
    return numbers


@dataclass(frozen=True)
class _Measure:
    """How maps and selections are held against one kind of truth."""

    pixels: Callable[[RaggedMaps, Uris], dict[str, PixelScores]]
    hits: Callable[[Any], dict[str, float]]


def _measure_of(truth: TruthReference, size: int, cell: int) -> _Measure:
    if truth.kind == MASKS:
        folder = MaskFolder(truth.url)
        return _Measure(
            pixels=lambda maps, uris: masks.score_pixels(maps, uris, folder, size),
            hits=lambda selection: masks.hits(selection, folder, size),
        )
    table = pq.read_table(pa.BufferReader(read_bytes(truth.url)))
    return _Measure(
        pixels=lambda maps, uris: {"": planted.score_pixels(maps, uris, table, cell)},
        hits=lambda selection: planted.hits(selection, table),
    )


def _point(root: Root, dataset: Sequence[Shard], mined: Mined, measure: _Measure) -> StudyPoint:
    by_label: defaultdict[str, PixelScores] = defaultdict(PixelScores.empty)
    for shard, key in zip(dataset, mined.typicality, strict=True):
        uris = {(image.image_id, image.label): image.uri for image in good_images(root, shard)}
        maps = read_maps(root, finished(root, typicality.STAGE, key))
        for label, scores in measure.pixels(maps, uris).items():
            by_label[label] = by_label[label].merge(scores)
    if not by_label:
        raise InputError(
            "the masks should be of images that were mined, but none is; give the folder that "
            "mirrors the dataset's, with LABEL/STEM.png for LABEL/STEM.jpg"
        )
    together = reduce(PixelScores.merge, by_label.values())
    return StudyPoint(
        step=mined.step,
        average_precision=together.average_precision,
        base_rate=together.base_rate,
        hits=measure.hits(selected(root, mined.selection)),
        precision_by_label={
            label: scores.average_precision for label, scores in sorted(by_label.items()) if label
        },
    )


def _tiles(root: Root, mined: Sequence[Mined], size: int) -> dict[str, dict[int, list[Tile]]]:
    """The pixels of each label's highest patches, by step."""
    tiles: defaultdict[str, dict[int, list[Tile]]] = defaultdict(dict)
    for one in mined:
        selection = selected(root, one.selection)
        for label in sorted(selection.column("label").unique().to_pylist()):
            shown = label_patches(selection, label, "highest")[:TILES]
            tiles[label][one.step] = [crop(load_pixels(p.uri, size), p) for p in shown]
    return dict(tiles)
