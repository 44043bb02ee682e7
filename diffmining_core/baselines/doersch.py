"""Doersch et al. (2012): windows whose nearest neighbours have their label, made into detectors.

Random windows of a label's images are its seeds. A seed is good if its nearest neighbours, over all
images, have its label. Of good seeds that fire at the same places one is kept. Each becomes a
linear SVM, trained in three rounds, and detectors are ranked by how many of their best windows have
the label. Seeds and their choice are those of the re-implementation by Siglidis et al. (2024).

Training comes in two kinds. `reference` is theirs, in `doersch_reference`. `fast` is our own: a
squared-hinge SVM of the best matches against 500 random windows and the detector's own mistakes
among its 50 matches, over all windows; the best 50 windows rank.

In: `windows` and `matching`. Out: elements, ranked by label, and the windows where they fire.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.baselines.matching import IMAGE, SHARD, Matches
from diffmining_core.baselines.windows import (
    ALGO as WINDOWS_ALGO,
)
from diffmining_core.baselines.windows import (
    CELLS,
    Floats,
    Place,
    window_corner,
)
from diffmining_core.patches.scoring import HIGHEST, PATCH_SCHEMA

ALGO = f"doersch-2 {WINDOWS_ALGO}"

MATCHES = 50
"""Best windows of a seed, and of a detector in fast training."""
RANKING_MATCHES = 100
"""Best windows that rank a detector after reference training."""
FIRST = 20
"""Of them, those whose label decides which seeds are good."""
SAME_PLACES, SAME_IOU = 5, 0.3
"""A seed is left out if more of its matches than this overlap those of one seed kept."""
POSITIVES = 5
"""Best matches with the label that a detector is trained on."""
NEGATIVES = 500
"""Random windows without the label that it is trained on, beside those that it took for it."""
ROUNDS = 3
SVM_C = 0.1
LEAST_CONTRAST = 0.15
"""Of a seed: share of the grey range between its percentiles 1 and 99."""

ELEMENT_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("element", pa.int32()),  # rank of the detector in its label, 0 the best
        ("match", pa.int32()),  # rank of the window in its detector, among all labels
        ("with_label", pa.int32()),  # windows with the label among those that rank the detector
        ("first_with_label", pa.int32()),  # and among its FIRST
        ("image_id", pa.string()),
        ("y", pa.int32()),  # top left corner, pixels of the model-size image
        ("x", pa.int32()),
    ]
)

Flags = npt.NDArray[np.bool_]
Window = tuple[int, int, int, int]
"""Shard, image in it, row and column of its first cell."""


def random_windows(grid: Place, count: int, seed: int) -> list[Place]:
    """Up to `count` different random windows of an image with a grid of so many down and across."""
    total = max(grid[0], 0) * max(grid[1], 0)
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    return [(int(at) // grid[1], int(at) % grid[1]) for at in chosen]


def has_contrast(pixels: npt.NDArray[np.uint8], place: Place, size: int) -> bool:
    """Whether the window of `size` pixels at a place of an image can be a seed."""
    from skimage.exposure import is_low_contrast

    y, x = window_corner(place, size, (pixels.shape[0], pixels.shape[1]))
    return not is_low_contrast(
        pixels[y : y + size, x : x + size],
        fraction_threshold=LEAST_CONTRAST,
        lower_percentile=1,
        upper_percentile=99,
    )


def with_label(matches: Matches, of_images: Sequence[Flags], labels: npt.NDArray[np.intp]) -> Flags:
    """Whether the image of each match [n, k] has the detector's own label.

    of_images: of each shard, which image has which label [images, labels]; labels [n]: of the
    detectors.
    """
    found = np.zeros(matches.scores.shape, bool)
    for number, flags in enumerate(of_images):
        rows, columns = np.nonzero(matches.places[..., SHARD] == number)
        found[rows, columns] = flags[matches.places[rows, columns, IMAGE], labels[rows]]
    return found


def best_seeds(matches: Matches, right: Flags, kept: int) -> list[int]:
    """The seeds of one label to go on with: at most `kept`, the best first, at places of their own.

    Best are those with the most matches of the label, `right` [n, k], among the first 20; equal
    ones in their own order.
    """
    by_image: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    chosen: list[int] = []
    for seed in np.argsort(-right[:, :FIRST].sum(axis=1), kind="stable"):
        if len(chosen) == kept:
            break
        places = matches.places[seed].tolist()
        shared = Counter(
            other
            for shard, image, row, column in places
            for other, other_row, other_column in by_image.get((shard, image), ())
            if overlap((row, column), (other_row, other_column)) > SAME_IOU
        )
        if max(shared.values(), default=0) > SAME_PLACES:
            continue
        chosen.append(int(seed))
        for shard, image, row, column in places:
            by_image[shard, image].append((int(seed), row, column))
    return chosen


def overlap(one: Place, other: Place) -> float:
    """Intersection over union of two windows of one image, by their first cells."""
    down, across = (max(0, CELLS - abs(a - b)) for a, b in zip(one, other, strict=True))
    shared = down * across
    return shared / (2 * CELLS * CELLS - shared)


@dataclass(frozen=True)
class Examples:
    """Windows that a detector is trained on: those of its label, and those it took for such."""

    positives: list[Window]
    taken: list[Window]


def examples(places: npt.NDArray[np.int32], right: Flags) -> Examples:
    """What the matches of one detector, places [k, 4], teach it; `right` [k] have its label."""
    return Examples(windows_at(places[right][:POSITIVES]), windows_at(places[~right]))


def windows_at(places: npt.NDArray[np.int32]) -> list[Window]:
    """The windows at places [n, 4]."""
    return [(shard, image, row, column) for shard, image, row, column in places.tolist()]


def trained_detector(positives: Floats, negatives: Floats) -> tuple[Floats, float]:
    """Fast training: weights [d] and offset of a squared-hinge linear SVM.

    It tells descriptors [n, d] from others [m, d].
    """
    from sklearn.svm import LinearSVC  # takes seconds, for which only training has to wait

    svm = LinearSVC(C=SVM_C, dual=True, max_iter=20_000, random_state=0)
    right = np.repeat([True, False], [len(positives), len(negatives)])
    svm.fit(np.concatenate([positives, negatives]).astype(np.float64), right)
    return svm.coef_[0].astype(np.float32), float(svm.intercept_[0])


def ranking(right: Flags) -> npt.NDArray[np.intp]:
    """The detectors of one label, best first: by how many of their matches [n, k] have it.

    Equal ones by how many among the first 20, then in their own order.
    """
    return np.lexsort((-right[:, :FIRST].sum(axis=1), -right.sum(axis=1)))


def element_patches(elements: pa.Table, size: int, per_image: int) -> pa.Table:
    """The patch table (PATCH_SCHEMA) of the windows of elements (ELEMENT_SCHEMA).

    A patch's score, in the place of typicality, ranks windows as `ranking` does their elements and
    then by their place among the matches: with_label + (first_with_label + 1 − match / 100) / 22,
    whose second part is below 1. Of one image and label the best are kept, at most `per_image` and
    none overlapping another, as with any patches.
    """
    with_label, first, match = (
        elements[name].to_numpy() for name in ("with_label", "first_with_label", "match")
    )
    score = (with_label + (first + 1 - match / RANKING_MATCHES) / (FIRST + 2)).astype(np.float32)
    names = {name: elements[name].to_pylist() for name in ("image_id", "label", "y", "x")}
    order = np.lexsort((names["x"], names["y"], elements["element"].to_numpy(), -score))
    kept: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    for at in order:
        image_id, label, y, x = (names[name][at] for name in ("image_id", "label", "y", "x"))
        of_image = kept[image_id, label]
        if len(of_image) == per_image or any(
            abs(y - v) <= size and abs(x - u) <= size for v, u in of_image
        ):
            continue
        place = {"image_id": image_id, "label": label, "y": y, "x": x, "size": size}
        found = {"kind": HIGHEST, "rank": len(of_image), "typicality": score[at]}
        rows.append({**place, **found})
        of_image.append((y, x))
    rows.sort(key=lambda row: (row["image_id"], row["label"], row["rank"]))
    return pa.Table.from_pylist(rows, schema=PATCH_SCHEMA)
