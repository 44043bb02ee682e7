"""From typicality maps to non-overlapping patches of each image.

The score of a k×k window is the mean of the bilinearly upsampled map under it. Upsampling and
averaging are both linear and separable, so the scores of all windows are one small matrix product
per axis and the upsampled map is never formed.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask.base import compute
from dask.delayed import delayed
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmining_core.store.maps import RaggedMaps

ALGO = "patches-1"

HIGHEST, LOWEST, RANDOM = "highest", "lowest", "random"
KINDS = (HIGHEST, LOWEST, RANDOM)

PATCH_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("kind", pa.string()),
        ("rank", pa.int32()),  # 0-based in image and kind
        ("y", pa.int32()),  # top left corner, pixels of the model-size image
        ("x", pa.int32()),
        ("size", pa.int32()),  # side of the patch, pixels
        ("typicality", pa.float32()),  # mean of the upsampled map over the patch
    ]
)

IMAGES_PER_TASK = 16  # about 0.1 s of work each, well above Dask's cost per task

Position = tuple[int, int]  # (y, x) of a patch's top left corner
Row = tuple[str, str, str, int, int, int, int, float]  # one patch, as in PATCH_SCHEMA


def bilinear_weights(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    """Matrix [n_out, n_in] that resamples one axis bilinearly.

    Sample i of the result lies at (i + 0.5) · n_in / n_out − 0.5 of the input, held inside it: the
    rule of torch's `interpolate(mode="bilinear", align_corners=False)`.
    """
    position = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    below = np.minimum(position.astype(np.int64), n_in - 1)
    above = np.minimum(below + 1, n_in - 1)
    fraction = position - below
    weights = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    weights[rows, below] += 1.0 - fraction
    weights[rows, above] += fraction
    return weights


def upsample_bilinear(
    typicality_map: npt.NDArray[np.floating[Any]], image_hw: Position
) -> npt.NDArray[np.float64]:
    """The map [h, w] at the size of the image [H, W], as torch does with `align_corners=False`."""
    height, width = image_hw
    rows = bilinear_weights(typicality_map.shape[0], height)
    columns = bilinear_weights(typicality_map.shape[1], width)
    return rows @ typicality_map.astype(np.float64) @ columns.T


@lru_cache(maxsize=64)  # maps of one shape share their two matrices
def window_weights(n_in: int, n_out: int, size: int) -> npt.NDArray[np.float64]:
    """Matrix [n_out − size + 1, n_in]: upsampling one axis, then the mean of each `size` samples.

    The integral-image trick on the weights themselves: differences of their running sum.
    """
    weights = bilinear_weights(n_in, n_out)
    running = np.vstack([np.zeros((1, n_in)), np.cumsum(weights, axis=0)])
    means = (running[size:] - running[:-size]) / size
    means.flags.writeable = False
    return means


def patch_scores(
    typicality_map: npt.NDArray[np.floating[Any]], image_hw: Position, size: int
) -> npt.NDArray[np.float32]:
    """Mean typicality under every size×size window of the image, those at the far edges included.

    typicality_map is [h, w]; the result [H − size + 1, W − size + 1] (empty when the image is
    smaller than a window) is computed in float64 and rounded to float32, so that windows over equal
    values tie exactly instead of differing by the last bit of a float64.
    """
    height, width = image_hw
    if size > min(height, width):
        return np.empty((max(height - size + 1, 0), max(width - size + 1, 0)), np.float32)
    rows = window_weights(typicality_map.shape[0], height, size)
    columns = window_weights(typicality_map.shape[1], width, size)
    scores = rows @ (typicality_map.astype(np.float64) @ columns.T)
    return scores.astype(np.float32)


def pick_patches(
    scores: npt.NDArray[np.floating[Any]], size: int, count: int, highest: bool = True
) -> list[Position]:
    """Up to `count` windows in greedy order of score [rows, columns], none overlapping another.

    A candidate survives if its start differs by more than `size` in y or in x from each accepted
    one; of equal scores the lowest row-major index wins. Fewer are returned when none survives.
    """
    remaining = scores.copy() if highest else -scores
    picked: list[Position] = []
    while len(picked) < count and remaining.size:
        y, x = map(int, np.unravel_index(remaining.argmax(), remaining.shape))
        if remaining[y, x] == -np.inf:
            break
        picked.append((y, x))
        remaining[max(y - size, 0) : y + size + 1, max(x - size, 0) : x + size + 1] = -np.inf
    return picked


def random_patches(shape: Position, size: int, count: int, seed: int) -> list[Position]:
    """Up to `count` random windows under the same rule: random scores, picked greedily.

    shape is that of the score array, not of the image.
    """
    scores = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return pick_patches(scores, size, count)


def image_seed(seed: int, image_id: str) -> int:
    """A seed in [0, 2^64) that depends on the run's seed and the image alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8], "big")


def image_patches(
    typicality_map: npt.NDArray[np.floating[Any]],
    image_id: str,
    label: str,
    cell: int,
    size: int,
    per_image: int,
    seed: int,
) -> list[Row]:
    """The patches of one image, all kinds, in rank order; none when it is smaller than a patch."""
    if not np.isfinite(typicality_map).all():
        raise InputError(
            f"image {image_id} (label {label}): every value of its typicality map should be "
            "finite, some are not; compute its shard again with a float32 model."
        )
    height, width = typicality_map.shape
    scores = patch_scores(typicality_map, (cell * height, cell * width), size)
    picks = {
        HIGHEST: pick_patches(scores, size, per_image),
        LOWEST: pick_patches(scores, size, per_image, highest=False),
        RANDOM: random_patches(scores.shape, size, per_image, image_seed(seed, image_id)),
    }
    return [
        (image_id, label, kind, rank, y, x, size, float(scores[y, x]))
        for kind in KINDS
        for rank, (y, x) in enumerate(picks[kind])
    ]


def _rows_of(
    images: Sequence[tuple[npt.NDArray[np.float32], str, str]],
    cell: int,
    size: int,
    per_image: int,
    seed: int,
) -> list[Row]:
    return [row for image in images for row in image_patches(*image, cell, size, per_image, seed)]


def shard_patches(maps: RaggedMaps, cell: int, size: int, per_image: int, seed: int) -> pa.Table:
    """The patch table (PATCH_SCHEMA) of one shard of maps, in the order of its images.

    cell is the side in pixels of one map position (8 for Stable Diffusion), size that of a patch.
    Images smaller than a patch have no rows; `too_small` names them. Runs on Dask, in threads
    unless a scheduler is configured. InputError for a map that is not finite.
    """
    images = [
        (maps.map(i), *ids) for i, ids in enumerate(zip(maps.image_id, maps.label, strict=True))
    ]
    tasks = [
        delayed(_rows_of)(images[i : i + IMAGES_PER_TASK], cell, size, per_image, seed)
        for i in range(0, len(images), IMAGES_PER_TASK)
    ]
    with threadpool_limits(1, user_api="blas"):  # Dask's threads already fill the cores
        parts = compute(*tasks)  # type: ignore[no-untyped-call]  # Dask types only part of itself
    rows = [row for part in parts for row in part]
    columns = zip(*rows, strict=True) if rows else [()] * len(PATCH_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, PATCH_SCHEMA, strict=True)],
        schema=PATCH_SCHEMA,
    )


def too_small(maps: RaggedMaps, cell: int, size: int) -> list[str]:
    """The ids of the images in which no patch fits: cell · min(h, w) < size."""
    fits = cell * maps.hw.min(axis=1) >= size
    return [image_id for image_id, fit in zip(maps.image_id, fits, strict=True) if not fit]
