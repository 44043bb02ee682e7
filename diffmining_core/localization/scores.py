"""How well one typicality map tells where its label is: two measures of the same ranking.

Both are areas under a curve of precision over recall of the pixels with typicality above a
threshold. They differ in the thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.evaluation.masks import Mask

ALGO = "localization-1"
"""Version of what is scored and how; part of the units' keys."""

OFFICIAL_THRESHOLDS = 2 * 10.0 ** -np.linspace(2, 7, 1000)
"""Typicality, from 2e-2 down to 2e-7: those of the released research code."""

SCORE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("side", pa.string()),  # which model: before or after finetuning
        ("chance", pa.float64()),  # the share of the image where the label is
        ("average_precision", pa.float64()),
        ("official_auc_pr", pa.float64()),
    ]
)


@dataclass(frozen=True)
class MapScore:
    """One map against its mask; all in [0, 1].

    chance is the share of true pixels, which is the average precision of a random ranking.
    """

    chance: float
    average_precision: float
    official_auc_pr: float


def map_score(typicality: npt.NDArray[np.floating[Any]], mask: Mask) -> MapScore:
    """Scores of typicality [H, W] against a mask [H, W] with a true pixel.

    ValueError if the shapes differ, no pixel is true, or typicality is not finite.
    """
    if typicality.shape != mask.shape or not mask.any() or not np.isfinite(typicality).all():
        raise ValueError(
            f"typicality {typicality.shape} should be finite and as large as the mask {mask.shape},"
            f" which should be true somewhere, and is at {int(mask.sum())} pixels"
        )
    values = typicality.astype(np.float32)  # what is equal but for float64's last bit is tied
    inside, outside = np.sort(values[mask]), np.sort(values[~mask])
    return MapScore(
        chance=len(inside) / values.size,
        average_precision=average_precision(inside, outside),
        official_auc_pr=official_auc_pr(inside, outside),
    )


def average_precision(
    inside: npt.NDArray[np.floating[Any]], outside: npt.NDArray[np.floating[Any]]
) -> float:
    """Mean over the true pixels of the precision at their typicality.

    inside [n], outside [m]: typicality of the true and the other pixels, each ascending. Precision
    at a threshold is the true share of the pixels at or above it, so that tied pixels count alike.
    """
    found = _count_above(inside, inside, "left")
    return float((found / (found + _count_above(outside, inside, "left"))).mean())


def official_auc_pr(
    inside: npt.NDArray[np.floating[Any]], outside: npt.NDArray[np.floating[Any]]
) -> float:
    """The paper's own number, as its released code has it: a trapezoid over OFFICIAL_THRESHOLDS.

    inside [n], outside [m] as in `average_precision`. Pixels above a threshold are found; precision
    is 0 where none is. The curve is not carried on to recall 0 or 1, so that the number depends on
    the scale of typicality and does not see typicality below 2e-7.
    """
    found = _count_above(inside, OFFICIAL_THRESHOLDS, "right")
    chosen = found + _count_above(outside, OFFICIAL_THRESHOLDS, "right")
    return float(np.trapezoid(found / np.maximum(chosen, 1), found / len(inside)))


def _count_above(
    ascending: npt.NDArray[np.floating[Any]], thresholds: npt.NDArray[np.floating[Any]], side: Any
) -> npt.NDArray[np.int64]:
    """How many values are above each threshold: or equal to it ("left"), or not ("right")."""
    return len(ascending) - np.searchsorted(ascending, thresholds, side=side)


def score_table(
    scores: Iterable[tuple[Mapping[str, str], Mapping[str, MapScore]]],
) -> pa.Table:
    """A table of SCORE_SCHEMA from (image_id, uri and label; score by side) of each image."""
    rows = [
        {**pair, "side": side, **vars(score)}
        for pair, by_side in scores
        for side, score in by_side.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)
