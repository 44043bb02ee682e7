"""The training of Doersch's detectors as Siglidis et al. (2024) released it.

Each of three rounds sees a random third of every image's windows. There a detector's 5 best windows
in images of its label are positives, and random windows of images without it negatives, together
with the hard ones of earlier rounds: negatives that the SVM of their round scored above 0. The SVM
is scikit-learn's `SVC(kernel="linear", C=0.1)`; its weights, without offset, search next.

Source: doersch/doersch.py (`iterative_clustering`, `train_svm`) and doersch/hog.py. On purpose we
differ in three ways. The thirds are disjoint; the released code's slices grow: one third, two
thirds, all. Windows outside a third are skipped; there they score 0, which beats negative scores.
Detectors of a label share one draw of negatives, in their own order; there each has its own.

In: descriptors from `windows`. Out: weights, and which negatives were hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffmining_core.baselines.doersch import POSITIVES, ROUNDS, SVM_C, Window
from diffmining_core.baselines.matching import Matches, Numbers
from diffmining_core.baselines.windows import Floats, Place
from diffmining_core.patches.scoring import image_seed

ALGO = "doersch-reference-1"

NEGATIVES = 25_000
"""Negatives of a round, random and hard together."""
LEAST_NEGATIVES = 10_000
"""Random negatives at least, however many hard ones there are."""

WORKING = 128
"""Highest-scored negatives that an SVM is solved with before the others are checked."""
_ROWS, _DETECTORS = 4096, 256  # in one product of scores
TOLERANCE = 1e-5
"""The SVM's stopping tolerance; the default, 1e-3, leaves a tenth of a weight undecided."""

Halves = npt.NDArray[np.float16]
"""Descriptors [n, d]; half precision loses nothing of them."""


def third(grid: Place, image_id: str, round_: int, seed: int) -> Numbers:
    """The numbers, ascending, of the windows of an image that a round sees.

    grid: windows down and across. The rounds' thirds are disjoint and cover all windows.
    """
    total = window_count(grid)
    order = np.random.default_rng([image_seed(seed, image_id), ROUNDS]).permutation(total)
    start, stop = _bounds(total, round_)
    return np.sort(order[start:stop])


def window_count(grid: Place) -> int:
    """The number of windows of a grid, given as windows down and across."""
    return max(grid[0], 0) * max(grid[1], 0)


def _bounds(total: int, round_: int) -> tuple[int, int]:
    return total * round_ // ROUNDS, total * (round_ + 1) // ROUNDS


def negatives_wanted(hard: int, negatives: int = NEGATIVES, least: int = LEAST_NEGATIVES) -> int:
    """The number of random negatives of a detector that has `hard` hard ones."""
    return max(negatives - hard, least)


def drawn(
    counts: npt.NDArray[np.int64], wanted: int, round_: int, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Up to `wanted` different random windows of a round's third, in random order.

    counts: windows of each image. Returns each one's image, and its place in that image's `third`.
    """
    sizes = counts * (round_ + 1) // ROUNDS - counts * round_ // ROUNDS
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.random.default_rng([seed, round_]).choice(total, min(wanted, total), replace=False)
    image = np.searchsorted(ends, chosen, side="right")
    return image, chosen - (ends - sizes)[image]


def positive_windows(matches: Matches, detector: int) -> list[Window]:
    """The best windows of a detector in its label's images, of matches padded with -inf."""
    found = np.isfinite(matches.scores[detector])
    places = matches.places[detector, found][:POSITIVES]
    return [(shard, image, row, column) for shard, image, row, column in places.tolist()]


@dataclass(frozen=True)
class LinearSVM:
    """A linear SVM: weights [d], offset, and the negatives that it scores above 0, by number."""

    weights: Floats
    offset: float
    above: npt.NDArray[np.intp]


def trained_detectors(
    positives: Sequence[Halves], negatives: Halves, candidates: Sequence[npt.NDArray[np.intp]]
) -> list[LinearSVM]:
    """The SVM of each detector: its positives [n, d] against some negatives, by number.

    Equals `SVC(kernel="linear", C=0.1)` on all of a detector's candidates, to that solver's
    tolerance. It is solved with the highest-scored candidates alone; then all are scored and the
    highest of those within the margin added, until none is missing: the others have no weight.
    """
    trained: list[LinearSVM] = []
    for start in range(0, len(positives), _DETECTORS):
        stop = start + _DETECTORS
        trained += _trained(positives[start:stop], negatives, candidates[start:stop])
    return trained


def _trained(
    positives: Sequence[Halves], negatives: Halves, candidates: Sequence[npt.NDArray[np.intp]]
) -> list[LinearSVM]:
    means = np.stack([one.mean(axis=0, dtype=np.float32) for one in positives])
    closeness = _scores(negatives, means)
    working = [_highest(closeness[mine, at], mine) for at, mine in enumerate(candidates)]
    done: dict[int, LinearSVM] = {}
    while len(done) < len(positives):
        left = [at for at in range(len(positives)) if at not in done]
        solved = [_svm(positives[at], negatives[working[at]]) for at in left]
        scores = _scores(negatives, np.stack([weights for weights, _ in solved]))
        for column, (at, (weights, offset)) in enumerate(zip(left, solved, strict=True)):
            mine = candidates[at]
            own = scores[mine, column] + np.float32(offset)
            needed = own > -1 - TOLERANCE
            needed[np.argsort(-own, kind="stable")[:WORKING]] = True
            needed &= ~np.isin(mine, working[at])
            if needed.any():
                more = _highest(own[needed], mine[needed])
                working[at] = np.union1d(working[at], more)
            else:
                done[at] = LinearSVM(weights, offset, mine[own > 0])
    return [done[at] for at in range(len(positives))]


def _highest(scores: Floats, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The numbers of the WORKING highest scores."""
    return numbers[np.argsort(-scores, kind="stable")[:WORKING]]


def _scores(negatives: Halves, weights: Floats) -> Floats:
    """The products [n, detectors], some rows at a time: only these are in single precision."""
    scores = np.empty((len(negatives), len(weights)), np.float32)
    for start in range(0, len(negatives), _ROWS):
        rows = slice(start, start + _ROWS)
        scores[rows] = negatives[rows].astype(np.float32) @ weights.T
    return scores


def _svm(positives: Halves, negatives: Halves) -> tuple[Floats, float]:
    from sklearn.svm import SVC  # takes seconds, for which only training has to wait

    svm = SVC(kernel="linear", C=SVM_C, tol=TOLERANCE)
    right = np.repeat([1, -1], [len(positives), len(negatives)])
    svm.fit(np.concatenate([positives, negatives]).astype(np.float64), right)
    return svm.coef_[0].astype(np.float32), float(svm.intercept_[0])
