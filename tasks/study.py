"""Truth against finetuning steps: what mining finds with a model as it was at several of them."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import label_patches
from diffmining_core.report.study import Study, StudyPoint, render_study, write_study
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_json
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import study_truth
from tasks.evaluation import TruthReference
from tasks.report import PLACE, ROOT_PAGE
from tasks.selection import selected
from tasks.study_truth import Measure, measure_of, pixel_scores, together
from tasks.units import Done, fill, stage_task

STAGE = "study"
ALGO = "study-1"
TILES = 8
"""Highest patches shown of each label and step."""


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
    return Unit(STAGE, f"{ALGO} {study_truth.ALGO}", inputs, {"at": steps, **facts})


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
        measure = measure_of(opened, dataset, truth, size, cell)
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


def _point(root: Root, dataset: Sequence[Shard], mined: Mined, measure: Measure) -> StudyPoint:
    by_label = pixel_scores(root, dataset, mined.typicality, measure)
    scores = together(by_label)
    return StudyPoint(
        step=mined.step,
        average_precision=scores.average_precision,
        base_rate=scores.base_rate,
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
