"""How well patches of each kind tell the label of their image: numbers, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from diffmining_core.evaluation.predictability import ALGO as PREDICTABILITY_ALGO
from diffmining_core.evaluation.predictability import Predicted, colours, predictability
from diffmining_core.images.pixels import load_pixels
from diffmining_core.patches.scoring import HIGHEST, LOWEST, RANDOM
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import label_patches
from diffmining_core.report.study_predictability import (
    COLOURS,
    FEATURES,
    PredictabilityStudy,
    predictability_page,
)
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks.features import feature_matrix, label_features
from tasks.progress import Progress
from tasks.report import store_study_page
from tasks.selection import selected
from tasks.study import STAGE, TILES
from tasks.units import Done, fill, stage_task

ALGO = "study-predictability-1"

KINDS = (HIGHEST, RANDOM, LOWEST)


@dataclass(frozen=True)
class Asked:
    """What is studied: features of each label's patches of each kind, by their keys.

    features: by kind (label, key). patches: at most of each label and kind. size: pixels of the
    images' shorter side.
    """

    title: str
    selection: str
    features: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    patches: int
    seed: int
    size: int
    facts: Mapping[str, Any]

    @property
    def unit(self) -> Unit:
        """The unit of the study."""
        keys = (key for _, of_kind in self.features for _, key in of_kind)
        options = {
            "what": "predictability",
            "kinds": [kind for kind, _ in self.features],
            "seed": self.seed,
            "facts": dict(self.facts),
        }
        return Unit(STAGE, f"{ALGO} {PREDICTABILITY_ALGO}", (self.selection, *keys), options)


@stage_task(STAGE)
def study_predictability(root: str, asked: Asked) -> Done:
    """Predict the labels of patches of each kind, by features and by colours, and draw the page."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        selection = selected(opened, asked.selection)
        drawn = PredictabilityStudy(
            title=asked.title,
            predicted=_predicted(opened, asked),
            patches=asked.patches,
            labels=[label for label, _ in asked.features[0][1]],
            tiles=lambda label: _tiles(selection, label, asked.size),
            facts=asked.facts,
        )
        page = predictability_page(drawn)
        store_study_page(attempt, page)

    return fill(root, asked.unit, produce)


def predicted_by_features(root: Root, keys: Sequence[str], seed: int) -> Predicted:
    """How well the features of these units tell the labels of their patches."""
    tables = [label_features(root, key) for key in keys]
    features = np.concatenate([feature_matrix(table) for table in tables])
    return predictability(features, *_labels_and_images(tables), seed)


def _predicted(root: Root, asked: Asked) -> dict[str, dict[str, Predicted]]:
    predicted: dict[str, dict[str, Predicted]] = {FEATURES: {}, COLOURS: {}}
    with Progress(STAGE, 2 * len(asked.features), "classifiers") as progress:
        for kind, of_kind in asked.features:
            keys = [key for _, key in of_kind]
            predicted[FEATURES][kind] = predicted_by_features(root, keys, asked.seed)
            progress.advance()
            tables = [label_features(root, key) for key in keys]
            seen = np.concatenate([_colours(table, asked.size) for table in tables])
            predicted[COLOURS][kind] = predictability(seen, *_labels_and_images(tables), asked.seed)
            progress.advance()
    return predicted


def _labels_and_images(tables: Sequence[pa.Table]) -> tuple[list[str], list[str]]:
    columns = ([value for table in tables for value in table[name].to_pylist()]
               for name in ("label", "image_id"))  # fmt: skip
    labels, images = columns
    return labels, images


def _colours(table: pa.Table, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The colours of the patches float32 [n, d], each image read once."""
    rows = table.select(["uri", "y", "x", "size"]).to_pylist()
    found: list[Any] = [None] * len(rows)
    load = lru_cache(maxsize=1)(load_pixels)
    for place in sorted(range(len(rows)), key=lambda place: rows[place]["uri"]):
        row = rows[place]
        pixels = load(row["uri"], size)
        side = row["size"]
        found[place] = colours(pixels[row["y"] : row["y"] + side, row["x"] : row["x"] + side])
    return np.stack(found)


def _tiles(selection: pa.Table, label: str, size: int) -> dict[str, list[Tile]]:
    return {
        kind: [
            crop(load_pixels(patch.uri, size), patch)
            for patch in label_patches(selection, label, kind)[:TILES]
        ]
        for kind in KINDS
    }
