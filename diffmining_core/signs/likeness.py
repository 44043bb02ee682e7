"""Are two labels one? Nearest neighbours among the features of their highest patches.

In: features of each label's highest patches and the images they are from. Out: pairs of labels
whose patches have each other for neighbours about as often as their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffmining_core.signs.sign import Sign, percent

NEIGHBOURS = 5
PATCHES = 200
"""Of each label, its highest: enough for a share to within a few hundredths."""

MOST_FOREIGN = 0.35
"""Share of neighbours from the other label; 0.5 where the two are one.

Two random halves of one label came to 0.38 to 0.49, not always 0.5: features are made with the
label's prompt, which alone tells them apart a little. Other labels came to 0.25 at most in drawn
scenes; skirts and outwear under a weak model to 0.38, which is said too.
"""

CANDIDATES = 8
FEW_PATCHES = 20


@dataclass(frozen=True)
class LabelFeatures:
    """Features float32 [n, d] of a label's highest patches by rank, and the image of each."""

    label: str
    features: NDArray[np.float32]
    image_ids: NDArray[np.str_]

    def shortened(self) -> LabelFeatures:
        """A copy of the first PATCHES, which keeps no other in memory."""
        return LabelFeatures(
            self.label, self.features[:PATCHES].copy(), self.image_ids[:PATCHES].copy()
        )


@dataclass(frozen=True)
class Alike:
    """Two labels and the share of foreign neighbours; pairs of rows (a's, b's) most alike."""

    a: str
    b: str
    share: float
    nearest: tuple[tuple[int, int], ...]


def most_alike(labels: Sequence[LabelFeatures]) -> list[Alike]:
    """For each label the label that it is most like, from the most alike on; no pair twice.

    Each is compared with the CANDIDATES whose mean feature is nearest to its own.
    """
    compared = [label.shortened() for label in labels if len(label.features) >= FEW_PATCHES]
    best: dict[int, tuple[float, int]] = {}
    for i, j in _candidates(compared):
        across = _distances(compared[i], compared[j])
        share = (
            foreign_share(_distances(compared[i], compared[i]), across)
            + foreign_share(_distances(compared[j], compared[j]), across.T)
        ) / 2
        for at, other in ((i, j), (j, i)):
            best[at] = max(best.get(at, (-1.0, -1)), (share, other))
    pairs = {(share, min(i, j), max(i, j)) for i, (share, j) in best.items()}
    return [
        Alike(
            compared[i].label,
            compared[j].label,
            share,
            _nearest(_distances(compared[i], compared[j])),
        )
        for share, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))
    ]


def _candidates(labels: Sequence[LabelFeatures]) -> list[tuple[int, int]]:
    """The pairs (i < j) to compare."""
    if len(labels) < 2:
        return []
    means = np.stack([label.features.mean(axis=0, dtype=np.float64) for label in labels])
    pairs = set()
    for i, mean in enumerate(means):
        apart = ((means - mean) ** 2).sum(axis=1)
        apart[i] = np.inf
        for j in np.argsort(apart, kind="stable")[: min(CANDIDATES, len(labels) - 1)].tolist():
            pairs.add((min(i, j), max(i, j)))
    return sorted(pairs)


def foreign_share(own: NDArray[np.float64], across: NDArray[np.float64]) -> float:
    """Mean share of foreigners among the NEIGHBOURS nearest of each row, both sides being many.

    own [n, n] and across [n, m] are squared distances, infinite between patches of one image. A
    side with more candidates is thinned to the other's number, evenly by rank.
    """
    count = min(own.shape[1] - 1, across.shape[1])
    within = np.sort(own[:, _evenly(own.shape[1], count)], axis=1)
    foreign = np.sort(across[:, _evenly(across.shape[1], count)], axis=1)
    k = min(NEIGHBOURS, count)
    both = np.concatenate([within[:, :k], foreign[:, :k]], axis=1)
    nearest = np.argsort(both, axis=1, kind="stable")[:, :k]
    found = np.isfinite(np.take_along_axis(both, nearest, axis=1))
    return float(((nearest >= k) & found).sum() / max(found.sum(), 1))


def _evenly(n: int, count: int) -> NDArray[np.intp]:
    return np.linspace(0, n - 1, count).round().astype(np.intp)


def _distances(a: LabelFeatures, b: LabelFeatures) -> NDArray[np.float64]:
    """Squared distances [n, m]; a patch is no neighbour of those of its own image."""
    x, y = a.features.astype(np.float64), b.features.astype(np.float64)
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.where(a.image_ids[:, None] == b.image_ids[None], np.inf, np.maximum(squared, 0))


def _nearest(across: NDArray[np.float64], count: int = 6) -> tuple[tuple[int, int], ...]:
    """The `count` closest pairs, each row and each column at most once."""
    left = across.copy()
    pairs = []
    for _ in range(min(count, *left.shape)):
        i, j = np.unravel_index(int(left.argmin()), left.shape)
        if not np.isfinite(left[i, j]):
            break
        pairs.append((int(i), int(j)))
        left[i, :] = left[:, j] = np.inf
    return tuple(pairs)


def likeness_signs(alike: Iterable[Alike]) -> Iterator[tuple[Sign, Alike]]:
    """The pairs of labels that are too alike."""
    for pair in alike:
        if pair.share >= MOST_FOREIGN:
            yield (
                Sign(
                    name="alike",
                    label=pair.a,
                    severity="warning",
                    what="Patches of two labels are too alike to be told apart.",
                    evidence=f"Of the patches most like those of {pair.a} and {pair.b}, "
                    f"{percent(pair.share)} are the other label’s; half would be if the two were "
                    "one.",
                    advice="Merge the two labels, or leave one out; if they should differ, "
                    "finetune longer (--finetune-steps).",
                    about=f"Patches of {pair.a} above the likest of {pair.b}.",
                ),
                pair,
            )
