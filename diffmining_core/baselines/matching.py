"""Where detectors fire: their best windows over all images, one window an image.

A detector is a weight per dimension of a descriptor and an offset; it scores a window by their
product. Partial results add up: the best over two shards are the best of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffmining_core.baselines.windows import (
    Cells,
    Floats,
    all_descriptors,
    descriptors_at,
    window_grid,
)

ALGO = "matching-1"

DETECTORS_AT_ONCE = 4096
"""In one product, whose result has so many numbers for each window of an image."""
IMAGES_AT_ONCE = 64
"""Of which all best windows are held, before the best of them are kept."""

SHARD, IMAGE, ROW, COLUMN = range(4)
"""What a place says of a window."""

Numbers = npt.NDArray[np.intp]
"""Numbers of windows in their image, counted row by row."""
Product = Callable[[Floats], Floats]
"""The scores [windows, detectors] of descriptors [windows, d]."""


@dataclass(frozen=True)
class Detectors:
    """What scores windows: weights float32 [n, d] and offsets float32 [n]."""

    weights: Floats
    offsets: Floats


@dataclass(frozen=True)
class Matches:
    """The best windows of n detectors, at most k of each, by descending score.

    scores: float32 [n, k]. places: int32 [n, k, 4], the window's shard, image in it, row and
    column. Equal scores by place. A row may be shorter than k all over: [n, fewer].
    """

    scores: Floats
    places: npt.NDArray[np.int32]

    @classmethod
    def none(cls, detectors: int) -> Matches:
        """The matches in no image."""
        return cls(np.empty((detectors, 0), np.float32), np.empty((detectors, 0, 4), np.int32))

    def rows(self, detectors: npt.NDArray[np.intp]) -> Matches:
        """The matches of some detectors."""
        return Matches(self.scores[detectors], self.places[detectors])

    def merge(self, other: Matches, count: int) -> Matches:
        """The best `count` of both."""
        scores = np.concatenate([self.scores, other.scores], axis=1)
        places = np.concatenate([self.places, other.places], axis=1)
        keys = (*(places[..., part] for part in (COLUMN, ROW, IMAGE, SHARD)), -scores)
        best = np.lexsort(keys, axis=1)[:, :count]
        return Matches(
            np.take_along_axis(scores, best, 1), np.take_along_axis(places, best[..., None], 1)
        )

    def of_shard(self, shard: int) -> Matches:
        """The same, as those of a shard of this number."""
        places = self.places.copy()
        places[..., SHARD] = shard
        return Matches(self.scores, places)


def shard_matches(
    images: Sequence[Cells],
    detectors: Detectors,
    count: int,
    device: str = "cpu",
    on_image: Callable[[], None] = lambda: None,
    searched: Sequence[Numbers] | None = None,
) -> Matches:
    """The best `count` windows of each detector in one shard, whose number is 0.

    Each image's descriptors are made once, for all detectors, and multiplied in float32 on a torch
    device. searched: which windows of each image are looked at, ascending; None for all.
    """
    n = len(detectors.weights)
    starts = range(0, n, DETECTORS_AT_ONCE)
    products = [_product(detectors.weights[at : at + DETECTORS_AT_ONCE], device) for at in starts]
    best = Matches.none(n)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        found = []
        for image, cells in enumerate(images[start : start + IMAGES_AT_ONCE], start):
            numbers = None if searched is None else searched[image]
            descriptors = _descriptors(cells, numbers)
            on_image()
            if len(descriptors):
                windows = [_best_windows(product(descriptors)) for product in products]
                score, window = (np.concatenate(parts) for parts in zip(*windows, strict=True))
                window = window if numbers is None else numbers[window]
                row, column = np.divmod(window, window_grid(cells)[1])
                place = (np.zeros(n, np.intp), np.full(n, image), row, column)
                found.append((score + detectors.offsets, np.stack(place, 1).astype(np.int32)))
        if found:
            scores, places = (np.stack(parts, 1) for parts in zip(*found, strict=True))
            best = best.merge(Matches(scores, places), count)
    return best


def _descriptors(cells: Cells, numbers: Numbers | None) -> Floats:
    """The descriptors of the windows of these numbers, of all if None."""
    if numbers is None:
        return all_descriptors(cells)
    across = max(1, window_grid(cells)[1])
    return descriptors_at(cells, [divmod(int(number), across) for number in numbers])


def _best_windows(scores: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Of scores [windows, detectors] each detector's best, and which it is, the first of equals."""
    best = scores.argmax(axis=0)
    return scores[best, np.arange(scores.shape[1])], best


def _product(weights: Floats, device: str) -> Product:
    """The product with weights [detectors, d], which stay on the device."""
    if device == "cpu":  # where torch need not be loaded
        return lambda descriptors: descriptors @ weights.T
    import torch

    there = torch.from_numpy(weights).to(device).T

    def product(descriptors: Floats) -> Floats:
        scores: Floats = (torch.from_numpy(descriptors).to(device) @ there).cpu().numpy()
        return scores

    return product
