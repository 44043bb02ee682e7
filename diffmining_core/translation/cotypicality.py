"""Co-typicality: where an image and its translations are typical of their labels all at once.

In: the typicality maps of one image under all labels, that of its own label of the image itself,
every other one of the image translated to that label. Out: their median (Siglidis et al. 2024,
eq. 4), and its highest patches: sequences, which are one place under each label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import patch_scores, pick_patches, window_weights
from diffmining_core.patches.sequences import SEQUENCE_SCHEMA

Map = npt.NDArray[np.float32]

ALGO = "cotypicality-1"
"""Version of the maps' median and of what is picked from it; part of the units' keys."""


@dataclass(frozen=True)
class ParallelMaps:
    """The typicality maps float32 [h, w] of one source image, by the label it is seen under.

    own: the labels of its own, whose maps are those of the image itself; the first is the one it
    was translated from. The other maps are of its translations.
    """

    image_id: str
    own: Sequence[str]
    maps: Mapping[str, Map]


def cotypicality(maps: Iterable[Map]) -> Map:
    """The median over labels at each position, float32 [h, w]; of an even number their mean.

    ValueError if the maps have several shapes or there is none.
    """
    stacked = list(maps)
    if len({one.shape for one in stacked}) != 1:
        raise ValueError(f"maps should have one shape, not {[one.shape for one in stacked]}")
    median: Map = np.median(np.stack(stacked).astype(np.float64), axis=0).astype(np.float32)
    return median


def image_sequences(
    image: ParallelMaps, cell: int, size: int, per_image: int
) -> list[dict[str, Any]]:
    """The rows (SEQUENCE_SCHEMA) of one source image, highest first; none if it is too small.

    InputError for maps of several shapes or with a value that is not finite.
    """
    _check(image)
    median = cotypicality(image.maps.values())
    height, width = cell * median.shape[0], cell * median.shape[1]
    scores = patch_scores(median, (height, width), size)
    if not (places := pick_patches(scores, size, per_image)):
        return []
    under = {
        label: _scores_at(one, (height, width), size, places) for label, one in image.maps.items()
    }
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
) -> npt.NDArray[np.float32]:
    """What `patch_scores` has at these places, without the others."""
    ys, xs = [y for y, _ in places], [x for _, x in places]
    rows = window_weights(typicality_map.shape[0], image_hw[0], size)[ys]
    columns = window_weights(typicality_map.shape[1], image_hw[1], size)[xs]
    scores: npt.NDArray[np.float64] = ((rows @ typicality_map.astype(np.float64)) * columns).sum(1)
    return scores.astype(np.float32)
