"""Generated images against the real ones, both mined: numbers, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffmining_core.evaluation.predictability import ALGO as PREDICTABILITY_ALGO
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.figures import Tile
from diffmining_core.report.study_generated import (
    GeneratedNumbers,
    GeneratedStudy,
    generated_page,
)
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks.index import good_images
from tasks.progress import Progress
from tasks.report import store_study_page
from tasks.selection import selected
from tasks.study import STAGE, TILES
from tasks.study_predictability import predicted_by_features
from tasks.study_sides import highest_tiles, mean_highest, mean_typicality
from tasks.units import Done, fill, stage_task

ALGO = "study-generated-1"


@dataclass(frozen=True)
class MinedImages:
    """One dataset and what was mined of it, by keys; guidance: None of the real images."""

    name: str
    guidance: float | None
    dataset: tuple[Shard, ...]
    typicality: tuple[str, ...]
    selection: str
    features: tuple[tuple[str, str], ...]
    """(label, key), of the highest patches."""


@dataclass(frozen=True)
class GeneratedAsked:
    """What is studied: the real images first. size: pixels of the images' shorter side."""

    title: str
    mined: tuple[MinedImages, ...]
    seed: int
    size: int
    facts: Mapping[str, Any]

    @property
    def unit(self) -> Unit:
        """The unit of the study."""
        inputs = (
            key
            for one in self.mined
            for key in (*one.typicality, one.selection, *(key for _, key in one.features))
        )
        options = {
            "what": "generated",
            "guidance": [one.guidance for one in self.mined],
            "seed": self.seed,
            "facts": dict(self.facts),
        }
        return Unit(STAGE, f"{ALGO} {PREDICTABILITY_ALGO}", tuple(inputs), options)


@stage_task(STAGE)
def study_generated(root: str, asked: GeneratedAsked) -> Done:
    """Measure what was mined of the real and the generated images, and publish the page."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        with Progress(STAGE, len(asked.mined), "datasets") as progress:
            numbers = []
            for one in asked.mined:
                numbers.append(_numbers(opened, one, asked.seed))
                progress.advance()
        page = generated_page(
            GeneratedStudy(
                title=asked.title,
                numbers=numbers,
                labels=[label for label, _ in asked.mined[0].features],
                tiles=lambda label: _tiles(opened, asked, label),
                facts=asked.facts,
            )
        )
        store_study_page(attempt, page)

    return fill(root, asked.unit, produce)


def _numbers(root: Root, one: MinedImages, seed: int) -> GeneratedNumbers:
    keys = [key for _, key in one.features]
    return GeneratedNumbers(
        name=one.name,
        guidance=one.guidance,
        images=sum(shard.images for shard in one.dataset),
        typicality=mean_typicality(root, one.typicality),
        highest=mean_highest(selected(root, one.selection)),
        told=predicted_by_features(root, keys, seed),
    )


def _tiles(root: Root, asked: GeneratedAsked, label: str) -> dict[str, Sequence[Tile]]:
    """The highest patches of each dataset, and below those of a generated one its first images."""
    rows: dict[str, Sequence[Tile]] = {}
    for one in asked.mined:
        name = "real" if one.guidance is None else f"{one.guidance:g}"
        table = selected(root, one.selection)
        rows[name] = highest_tiles({name: table}, label, asked.size)[name]
        if one.guidance is not None:
            images = [
                image
                for shard in one.dataset
                if label in dict(shard.labels)
                for image in good_images(root, shard)[:TILES]
            ]
            rows[f"{name} whole"] = [load_pixels(image.uri, asked.size) for image in images]
    return rows
