"""The same mining in several ways side by side: numbers of each, how alike they are, and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.evaluation.agreement import Matrix, RankAgreement, same_patches
from diffmining_core.images.pixels import load_pixels
from diffmining_core.patches.scoring import HIGHEST
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.sides import Pair, SideNumbers, Sides, sides_page
from diffmining_core.report.source import label_patches
from diffmining_core.report.study_page import NUMBERS
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_json
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import study_truth, typicality
from tasks.evaluation import TruthReference
from tasks.progress import Progress
from tasks.report import store_study_page
from tasks.results import Map
from tasks.selection import selected
from tasks.study import STAGE, TILES
from tasks.study_truth import measure_of, pixel_scores, together
from tasks.units import Done, fill, stage_task

ALGO = "sides-1"


@dataclass(frozen=True)
class Side:
    """One way of mining the shards of a study: its maps and its selection, by their keys.

    at: its place on the axis. group: the sides that it belongs to.
    """

    name: str
    at: float
    group: str
    typicality: tuple[str, ...]
    selection: str


@dataclass(frozen=True)
class SidesStudy:
    """What is studied, on which shards, mined in which ways.

    pairs: the sides (by number) that are compared. size, cell: pixels of the images' shorter side
    and of a place of a map. facts: how it was made.
    """

    what: str
    title: str
    truth: TruthReference | None
    dataset: tuple[Shard, ...]
    sides: tuple[Side, ...]
    pairs: tuple[tuple[int, int], ...]
    size: int
    cell: int
    facts: Mapping[str, Any]

    @property
    def unit(self) -> Unit:
        """The unit of the study."""
        inputs = (
            self.truth.digest if self.truth else "",
            *(key for side in self.sides for key in (*side.typicality, side.selection)),
        )
        options = {
            "what": self.what,
            "sides": [[side.name, side.at, side.group] for side in self.sides],
            "pairs": [list(pair) for pair in self.pairs],
            "facts": dict(self.facts),
        }
        return Unit(STAGE, f"{ALGO} {study_truth.ALGO}", inputs, options)


@stage_task(STAGE)
def study_sides(root: str, study: SidesStudy) -> Done:
    """Measure each side and how alike they are, and publish the page."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        selections = [selected(opened, side.selection) for side in study.sides]
        drawn = Sides(
            title=study.title,
            sides=_numbers(opened, study, selections),
            pairs=_pairs(opened, study, selections),
            labels=sorted({label for shard in study.dataset for label, _ in shard.labels}),
            tiles=lambda label: highest_tiles(_named(study, selections), label, study.size),
            facts=study.facts,
        )
        page = sides_page(study.what, drawn)
        store_study_page(attempt, page)

    return fill(root, study.unit, produce)


def studied_numbers(root: str, key: str) -> dict[str, Any]:
    """The numbers of a published study, and how it was made."""
    opened = open_root(root)
    numbers: dict[str, Any] = read_json(opened, finished(opened, STAGE, key), NUMBERS)
    return numbers


def highest_tiles(
    selections: Mapping[str, pa.Table], label: str, size: int
) -> dict[str, list[Tile]]:
    """The pixels of a label's highest patches in each of the selections."""
    shown = {
        name: label_patches(table, label, HIGHEST)[:TILES] for name, table in selections.items()
    }
    return {
        name: [crop(load_pixels(patch.uri, size), patch) for patch in patches]
        for name, patches in shown.items()
    }


def _named(study: SidesStudy, selections: Sequence[pa.Table]) -> dict[str, pa.Table]:
    return {side.name: table for side, table in zip(study.sides, selections, strict=True)}


def _numbers(root: Root, study: SidesStudy, selections: Sequence[pa.Table]) -> list[SideNumbers]:
    of_maps: dict[tuple[str, ...], dict[str, float]] = {}  # sides may share their maps
    measure = None
    if study.truth:
        measure = measure_of(root, study.dataset, study.truth, study.size, study.cell)
    numbers = []
    with Progress(STAGE, len(study.sides), "sides") as progress:
        for side, selection in zip(study.sides, selections, strict=True):
            if side.typicality not in of_maps:
                of_maps[side.typicality] = {"typicality": mean_typicality(root, side.typicality)}
                if measure:
                    scores = together(pixel_scores(root, study.dataset, side.typicality, measure))
                    of_maps[side.typicality] |= {
                        "average_precision": scores.average_precision,
                        "base_rate": scores.base_rate,
                    }
            numbers.append(
                SideNumbers(
                    name=side.name,
                    at=side.at,
                    group=side.group,
                    highest=mean_highest(selection),
                    hits=measure.hits(selection) if measure else None,
                    **of_maps[side.typicality],
                )
            )
            progress.advance()
    return numbers


def mean_typicality(root: Root, keys: Sequence[str]) -> float:
    """Over all places of all maps."""
    total, places = 0.0, 0
    for key in keys:
        values = read_maps(root, finished(root, typicality.STAGE, key)).values
        total += float(values.sum(dtype=np.float64))
        places += values.size
    return total / max(places, 1)


def mean_highest(selection: pa.Table) -> float:
    """The mean typicality of the highest patches of all labels."""
    highest = selection.filter(pc.equal(selection["kind"], HIGHEST))
    return float(pc.mean(highest["typicality"]).as_py() or 0.0)


def _pairs(root: Root, study: SidesStudy, selections: Sequence[pa.Table]) -> list[Pair]:
    ranks = _rank_agreement(root, study)
    return [
        Pair(
            first,
            second,
            float(ranks[first, second]),
            same_patches(selections[first], selections[second]),
        )
        for first, second in study.pairs
    ]


def _rank_agreement(root: Root, study: SidesStudy) -> Matrix:
    """How alike the maps of each two sides are; 1 where all have the same maps."""
    if len({side.typicality for side in study.sides}) == 1:
        return np.ones((len(study.sides), len(study.sides)))
    agreement = RankAgreement.empty(len(study.sides))
    for keys in zip(*(side.typicality for side in study.sides), strict=True):
        for maps in _maps_of_images(root, keys):
            agreement = agreement.add(maps)
    return agreement.mean


def _maps_of_images(root: Root, keys: Sequence[str]) -> Iterator[list[Map]]:
    """The maps of each image that all sides have, of one shard."""
    of_sides = [read_maps(root, finished(root, typicality.STAGE, key)) for key in keys]
    places = [
        {pair: i for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True))}
        for maps in of_sides
    ]
    for pair in places[0]:
        if all(pair in of_side for of_side in places):
            yield [maps.map(of_side[pair]) for maps, of_side in zip(of_sides, places, strict=True)]
