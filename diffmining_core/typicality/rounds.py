"""Typicality measured in rounds: what later draws add to the maps of earlier ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmining_core.store.maps import RaggedMaps

FIRST = 8
"""Draws that every image gets before any is chosen to get more."""
GROWTH = 1.5
"""About as many times the draws after each further round."""

Flat = npt.NDArray[np.float32]


def rounds(most: int) -> list[int]:
    """Draws of an image after each round, `most` in the last; even numbers before, for pairs.

    8, 12, 18, 28, 42, 64, 100 of 100. A last round of few draws is not worth its planning.
    """
    draws = [min(FIRST, most)]
    while draws[-1] < most:
        following = 2 * math.ceil(GROWTH * draws[-1] / 2)
        draws.append(following if GROWTH**0.5 * following < most else most)
    return draws


def combined(before: RaggedMaps, further: RaggedMaps) -> RaggedMaps:
    """The maps over the draws of both, which are the same images' in the same order.

    Means and sums of squared deviations add up as Chan et al. (1979) showed, so that in whatever
    rounds draws are taken the result is the same but for rounding.
    """
    ours = list(zip(before.image_id, before.label, strict=True))
    if ours != list(zip(further.image_id, further.label, strict=True)):
        raise ValueError("maps of two rounds do not belong to the same images in the same order")
    lengths = np.diff(before.offsets)
    first, second = (np.repeat(m.n_draws, lengths).astype(np.float64) for m in (before, further))
    share, weight = second / (first + second), first * second / (first + second)

    change = further.values.astype(np.float64) - before.values
    windows = None
    if before.window_m2 is not None and further.window_m2 is not None:
        shapes = zip(before.offsets, before.offsets[1:], before.hw.tolist(), strict=False)
        of_window = np.concatenate(
            [
                windowed(change[start:stop].reshape(shape), before.window).ravel()
                for start, stop, shape in shapes
            ]
        )
        windows = _sum(before.window_m2, further.window_m2, weight * of_window**2)
    n = before.n_draws + further.n_draws
    null_loss = before.null_loss + (further.null_loss - before.null_loss) * further.n_draws / n
    return replace(
        before,
        values=(before.values + share * change).astype(np.float32),
        m2=_sum(before.m2, further.m2, weight * change**2),
        null_loss=null_loss.astype(np.float32),
        n_draws=n.astype(np.int32),
        window_m2=windows,
    )


def windowed(typicality_map: npt.NDArray[Any], window: int) -> npt.NDArray[Any]:
    """The mean over the window that begins at each position of a map [h, w], as large.

    As in the estimator: no larger than the map, the last ones that fit repeated.
    """
    h, w = typicality_map.shape
    size = (min(window, h), min(window, w))
    means = np.lib.stride_tricks.sliding_window_view(typicality_map, size).mean(axis=(2, 3))
    return np.pad(means, ((0, size[0] - 1), (0, size[1] - 1)), mode="edge")


def _sum(one: Flat, other: Flat, between: npt.NDArray[np.float64]) -> Flat:
    total: Flat = (one + other + between).astype(np.float32)
    return total
