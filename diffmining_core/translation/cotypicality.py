"""Co-typicality: where an image and its translations are typical of their labels all at once.

In: the typicality maps of one image under all labels: its own label's map is of the image itself,
every other map of its translation to that label. Out: the patches of the highest co-typicality
(Siglidis et al. 2024, eq. 4): sequences, each of which is one place under every label.

Co-typicality scores a patch: it is the median over labels of the patch's scores. The order matters.
The median of the maps, averaged over the patch afterwards, is another number and picks other
patches: labels may well agree on a patch without agreeing on any position in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import pick_patches, score_bands, window_weights
from diffmining_core.patches.sequences import SEQUENCE_SCHEMA

Map = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]

ALGO = "cotypicality-2"
"""Version of the scores' median and of what is picked from it; part of the units' keys."""


@dataclass(frozen=True)
class ParallelMaps:
    """The typicality maps float32 [h, w] of one source image, by the label it is seen under.

    own: the labels of its own, whose maps are those of the image itself; the first is the one it
    was translated from. The other maps are of its translations.
    """

    image_id: str
    own: Sequence[str]
    maps: Mapping[str, Map]


def cotypicality(maps: Iterable[Map], image_hw: tuple[int, int], size: int) -> Scores:
    """The median over labels of the score of every size×size window of the image.

    maps: [h, w] each, of one image under its labels. The result is float32
    [H − size + 1, W − size + 1] as from `patch_scores`; for an even number of labels the mean of
    the two middle scores. One band of rows of each label's scores is held at a time. ValueError if
    the maps differ in shape or there is none.
    """
    of_labels = list(maps)
    if len({one.shape for one in of_labels}) != 1:
        raise ValueError(f"maps should have one shape, not {[one.shape for one in of_labels]}")
    height, width = image_hw
    median = np.empty((max(height - size + 1, 0), max(width - size + 1, 0)), np.float32)
    bands = (score_bands(one, image_hw, size) for one in of_labels)
    for of_band in zip(*bands, strict=True):
        windows = of_band[0][0]
        median[windows] = np.median(np.stack([scores for _, scores in of_band]), axis=0)
    return median


def image_sequences(
    image: ParallelMaps, cell: int, size: int, per_image: int
) -> list[dict[str, Any]]:
    """The rows (SEQUENCE_SCHEMA) of one source image, highest first; none if it is too small.

    InputError for maps of several shapes or with a value that is not finite.
    """
    _check(image)
    h, w = next(iter(image.maps.values())).shape
    image_hw = (cell * h, cell * w)
    scores = cotypicality(image.maps.values(), image_hw, size)
    if not (places := pick_patches(scores, size, per_image)):
        return []
    under = {label: _scores_at(one, image_hw, size, places) for label, one in image.maps.items()}
    return [
        {
            "image_id": image.image_id,
            "label": image.own[0],
            "rank": rank,
            "y": y,
            "x": x,
            "size": size,
            "cotypicality": float(scores[y, x]),
            "labels": list(under),
            "typicality": [float(values[rank]) for values in under.values()],
            "own": [label for label in under if label in image.own],
        }
        for rank, (y, x) in enumerate(places)
    ]


def sequence_table(
    images: Iterable[ParallelMaps], cell: int, size: int, per_image: int
) -> pa.Table:
    """The sequences (SEQUENCE_SCHEMA) of the images of a shard, in their order.

    cell is the side in pixels of one map position (8 for Stable Diffusion), size that of a patch.
    """
    rows = [row for image in images for row in image_sequences(image, cell, size, per_image)]
    return pa.Table.from_pylist(rows, schema=SEQUENCE_SCHEMA)


def _check(image: ParallelMaps) -> None:
    shapes = {one.shape for one in image.maps.values()}
    if len(shapes) != 1:
        raise InputError(
            f"image {image.image_id} (label {image.own[0]}): its map and those of its translations "
            f"should have one shape, but have {sorted(shapes)}; translate it again at its own size."
        )
    for label, one in image.maps.items():
        if not np.isfinite(one).all():
            raise InputError(
                f"image {image.image_id} (label {image.own[0]}): every value of its typicality map "
                f"under {label!r} should be finite, some are not; measure it again with "
                "--precision float32."
            )


def _scores_at(
    typicality_map: Map, image_hw: tuple[int, int], size: int, places: Sequence[tuple[int, int]]
) -> Scores:
    """What `patch_scores` has at these places, without the others."""
    ys, xs = [y for y, _ in places], [x for _, x in places]
    rows = window_weights(typicality_map.shape[0], image_hw[0], size)[ys]
    columns = window_weights(typicality_map.shape[1], image_hw[1], size)[xs]
    scores: npt.NDArray[np.float64] = ((rows @ typicality_map.astype(np.float64)) * columns).sum(1)
    return scores.astype(np.float32)
