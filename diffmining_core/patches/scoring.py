"""From typicality maps to non-overlapping patches of each image, and to its mean typicality.

The score of a k×k window is the mean of the bilinearly upsampled map under it. Upsampling and
averaging are both linear and separable, so the scores of all windows are one small matrix product
per axis and the upsampled map is never formed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.errors import InputError

if TYPE_CHECKING:
    from diffmining_core.store.maps import RaggedMaps

ALGO = "patches-2"

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

IMAGE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("typicality", pa.float32()),  # mean of the whole map
    ]
)

BAND_ROWS = 32
"""Rows of scores computed at once: few enough to need few rows of the map, and to stay in cache."""

Position = tuple[int, int]  # (y, x) of a patch's top left corner
Pick = tuple[str, int, int, int, float]  # kind, rank, y, x, typicality of one patch


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


@lru_cache(maxsize=64)
def row_bands(n_in: int, n_out: int, size: int) -> tuple[tuple[slice, slice], ...]:
    """(windows, cells): which cells of the axis have weight in `BAND_ROWS` windows in sequence.

    A window covers few cells of a large map; the products with the others' zeros are left out.
    """
    weights = window_weights(n_in, n_out, size)
    bands = []
    for start in range(0, len(weights), BAND_ROWS):
        windows = slice(start, start + BAND_ROWS)
        cells = np.flatnonzero(weights[windows].any(axis=0))
        bands.append((windows, slice(cells[0], cells[-1] + 1)))
    return tuple(bands)


def patch_scores(
    typicality_map: npt.NDArray[np.floating[Any]], image_hw: Position, size: int
) -> npt.NDArray[np.float32]:
    """Mean typicality under every size×size window of the image, those at the far edges included.

    typicality_map is [h, w]; the result [H − size + 1, W − size + 1] (empty when the image is
    smaller than a window) is computed in float64 and rounded to float32, so that windows over equal
    values tie exactly instead of differing by the last bit of a float64.
    """
    height, width = image_hw
    scores = np.empty((max(height - size + 1, 0), max(width - size + 1, 0)), np.float32)
    for windows, of_band in score_bands(typicality_map, image_hw, size):
        scores[windows] = of_band
    return scores


def score_bands(
    typicality_map: npt.NDArray[np.floating[Any]], image_hw: Position, size: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """The rows of `patch_scores` in bands of `BAND_ROWS`, from the top: which, and their scores.

    Who needs the scores of many maps at once, such as their median, holds one band of each.
    """
    height, width = image_hw
    if min(height, width) < size:
        return
    rows = window_weights(typicality_map.shape[0], height, size)
    columns = window_weights(typicality_map.shape[1], width, size)
    column_means = typicality_map.astype(np.float64) @ columns.T
    for windows, cells in row_bands(typicality_map.shape[0], height, size):
        yield windows, (rows[windows, cells] @ column_means[cells]).astype(np.float32)


def pick_patches(
    scores: npt.NDArray[np.floating[Any]], size: int, count: int, highest: bool = True
) -> list[Position]:
    """Up to `count` windows in greedy order of score [rows, columns], none overlapping another.

    A candidate survives if its start differs by more than `size` in y or in x from each accepted
    one; of equal scores the lowest row-major index wins. Fewer are returned when none survives.
    """
    return _pick(scores.copy() if highest else -scores, size, count)


def _pick(remaining: npt.NDArray[np.floating[Any]], size: int, count: int) -> list[Position]:
    """The greedy choice itself, which overwrites the scores it is given."""
    picked: list[Position] = []
    while len(picked) < count and remaining.size:
        y, x = divmod(int(remaining.argmax()), remaining.shape[1])
        if remaining[y, x] == -np.inf:
            break
        picked.append((y, x))
        remaining[max(y - size, 0) : y + size + 1, max(x - size, 0) : x + size + 1] = -np.inf
    return picked


def random_patches(shape: Position, size: int, count: int, seed: int) -> list[Position]:
    """Up to `count` random windows under the same rule: random scores, picked greedily.

    shape is that of the score array, not of the image.
    """
    return _pick(np.random.default_rng(seed).random(shape, dtype=np.float32), size, count)


def image_seed(seed: int, image_id: str) -> int:
    """A seed in [0, 2^64) that depends on the run's seed and the image alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8], "big")


def image_patches(
    typicality_map: npt.NDArray[np.floating[Any]],
    image_id: str,
    cell: int,
    size: int,
    per_image: int,
    seed: int,
) -> list[Pick]:
    """The patches of one image, all kinds, in rank order; none when it is smaller than a patch."""
    height, width = typicality_map.shape
    scores = patch_scores(typicality_map, (cell * height, cell * width), size)
    picks = {
        HIGHEST: pick_patches(scores, size, per_image),
        LOWEST: pick_patches(scores, size, per_image, highest=False),
        RANDOM: random_patches(scores.shape, size, per_image, image_seed(seed, image_id)),
    }
    return [
        (kind, rank, y, x, float(scores[y, x]))
        for kind in KINDS
        for rank, (y, x) in enumerate(picks[kind])
    ]


def shard_patches(maps: RaggedMaps, cell: int, size: int, per_image: int, seed: int) -> pa.Table:
    """The patch table (PATCH_SCHEMA) of one shard of maps, in the order of its images.

    cell is the side in pixels of one map position (8 for Stable Diffusion), size that of a patch.
    Images smaller than a patch have no rows; `too_small` names them. Runs in one thread where BLAS
    does. InputError for a map that is not finite.
    """
    _check_finite(maps)
    picks: list[Pick] = []
    counts = []
    for i, image_id in enumerate(maps.image_id):
        of_image = image_patches(maps.map(i), image_id, cell, size, per_image, seed)
        picks += of_image
        counts.append(len(of_image))
    image = np.repeat(np.arange(len(counts)), counts)
    kind, rank, y, x, typicality = zip(*picks, strict=True) if picks else [()] * 5
    columns = {
        "image_id": pa.array(maps.image_id, pa.string()).take(image),
        "label": pa.array(maps.label, pa.string()).take(image),
        "kind": kind,
        "rank": rank,
        "y": y,
        "x": x,
        "size": np.full(len(image), size, np.int32),
        "typicality": typicality,
    }
    return pa.table(columns, schema=PATCH_SCHEMA)


def image_typicality(maps: RaggedMaps) -> pa.Table:
    """The mean typicality (IMAGE_SCHEMA) of each whole image of a shard, in their order.

    Summed in float64, so that it does not depend on how the maps lie.
    """
    means = [float(maps.map(i).mean(dtype=np.float64)) for i in range(len(maps.image_id))]
    return pa.table([maps.image_id, maps.label, means], schema=IMAGE_SCHEMA)


def _check_finite(maps: RaggedMaps) -> None:
    wrong = np.flatnonzero(~np.isfinite(maps.values))
    if len(wrong):
        i = int(np.searchsorted(maps.offsets, wrong[0], side="right")) - 1
        raise InputError(
            f"image {maps.image_id[i]} (label {maps.label[i]}): every value of its typicality map "
            "should be finite, some are not; compute its shard again with --precision float32."
        )


def too_small(maps: RaggedMaps, cell: int, size: int) -> list[str]:
    """The ids of the images in which no patch fits: cell · min(h, w) < size."""
    fits = cell * maps.hw.min(axis=1) >= size
    return [image_id for image_id, fit in zip(maps.image_id, fits, strict=True) if not fit]
