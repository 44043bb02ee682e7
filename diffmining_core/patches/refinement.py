"""Which images are to be measured further, so that each label's top patches are the right ones.

Comes in: the patches that few draws of every image give, the errors of their scores, and where each
label's top ends. Goes out: the images of which a patch may still enter or leave that top, the
nearest to its end first. Every round takes a smaller share of a label's images to more draws, as
sequential halving does (Karnin et al., ICML 2013), so that its forwards are known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.scoring import HIGHEST
from diffmining_core.store.maps import RaggedMaps

ALGO = "refinement-2"

SHARE = 0.625
"""Of a label's images, those that the first round after all have had theirs takes further; each
round as large a share of the one before it. With the draws of `typicality.rounds` about a quarter
of the forwards of 100 draws everywhere (docs/speed.md)."""
CONFIDENCE = 3.0
"""Standard errors from the end of its top beyond which a patch's place is certain."""

Row = tuple[str, str]
"""image_id, label."""
Numbers = npt.NDArray[np.float64]


def ends_of_top(selection: pa.Table, top: int) -> dict[str, float]:
    """Per label, the typicality of the last of its `top` highest patches, where it has so many."""
    highest = selection.filter(pc.field("kind") == HIGHEST)
    of_label = highest.group_by("label").aggregate([("typicality", "min"), ("typicality", "count")])
    return {
        row["label"]: row["typicality_min"]
        for row in of_label.to_pylist()
        if row["typicality_count"] >= top
    }


def highest_with_errors(patches: pa.Table, maps: RaggedMaps, cell: int) -> pa.Table:
    """The highest patches of a shard's images, with the column `standard_error` (float64).

    The error is that of the mean over the window of map positions that the patch begins at.
    """
    highest = patches.filter(pc.field("kind") == HIGHEST)
    place = {row: i for i, row in enumerate(zip(maps.image_id, maps.label, strict=True))}
    errors = {row: maps.window_error(i) for row, i in place.items()}
    columns = highest.select(["image_id", "label", "y", "x"]).to_pydict().values()
    found = []
    for image_id, label, y, x in zip(*columns, strict=True):
        error = errors[image_id, label]
        h, w = error.shape
        row, column = (min(round(start / cell), end - 1) for start, end in ((y, h), (x, w)))
        found.append(float(error[row, column]))
    return highest.append_column("standard_error", pa.array(found, pa.float64()))


def image_rows(highest: pa.Table) -> list[Row]:
    """The images of these patches, each under one label, in one order."""
    rows = highest.select(["image_id", "label"]).to_pylist()
    return sorted({(row["image_id"], row["label"]) for row in rows})


def distances(highest: pa.Table, ends: Mapping[str, float]) -> Numbers:
    """How far each of `image_rows` is from being decided, in units of typicality.

    The least distance of its patches' scores from the end of their label's top, of those within
    `CONFIDENCE` standard errors of it; infinite where there is none. A label whose patches are
    fewer than its top has no end: they are all in it. highest: see `highest_with_errors`.
    """
    label, score, error = _columns(highest)
    end = np.array([ends.get(one, -math.inf) for one in label])
    distance = np.abs(score - end)
    distance[distance >= CONFIDENCE * error] = math.inf
    place = {row: i for i, row in enumerate(image_rows(highest))}
    found = np.full(len(place), math.inf)
    rows = zip(highest["image_id"].to_pylist(), label, strict=True)
    np.minimum.at(found, [place[row] for row in rows], distance)
    return found


def undecided(
    label: npt.NDArray[np.int32], distance: Numbers, share: float
) -> npt.NDArray[np.bool_]:
    """Which images are measured further: the `share` of each label's that are nearest to its end.

    label, distance: of every image (see `distances`), in any order. Of images at one distance all
    or none, and none at an infinite one.
    """
    chosen = np.isfinite(distance)
    for one in np.unique(label):
        of_label = label == one
        count = round(share * int(of_label.sum()))
        farthest = np.partition(distance[of_label], count - 1)[count - 1] if count else -math.inf
        chosen[of_label] &= distance[of_label] <= farthest
    return chosen


def chances(highest: pa.Table, ends: Mapping[str, float]) -> list[tuple[str, float]]:
    """For each patch that is in its label's top, that label and the chance that it belongs there.

    The chance that a normal variable with the score's mean and standard error lies above the top's
    end; 1 in a label without one.
    """
    label, score, error = _columns(highest)
    found = []
    for one, mean, spread in zip(label, score, error, strict=True):
        end = ends.get(one, -math.inf)
        if mean >= end:
            z = (mean - end) / spread if spread else math.inf
            found.append((one, 0.5 * (1 + math.erf(z / math.sqrt(2)))))
    return found


def _columns(highest: pa.Table) -> tuple[list[str], Numbers, Numbers]:
    columns: list[Any] = [highest[name].to_numpy() for name in ("typicality", "standard_error")]
    return highest["label"].to_pylist(), columns[0].astype(np.float64), columns[1]
