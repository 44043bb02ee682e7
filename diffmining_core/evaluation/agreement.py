"""How alike two ways of mining the same images are, whether or not their answer is known.

Maps are compared by how they rank the places of an image, patches by how they overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.patches.scoring import HIGHEST

Matrix = npt.NDArray[np.float64]

SAME_SHARE = 2 / 3
"""Of the smaller of two patches of an image, from which in the other they show the same.

For patches of one size this is an intersection over union of one half.
"""


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's correlation of the maps of an image, summed over any number of images.

    total: float64 [sides, sides], weight: images. Sums of partial results add up.
    """

    total: Matrix
    weight: int

    @classmethod
    def empty(cls, sides: int) -> RankAgreement:
        """That of no image."""
        return cls(np.zeros((sides, sides)), 0)

    def add(self, maps: Sequence[npt.NDArray[np.floating[Any]]]) -> RankAgreement:
        """With one image: its map of each side, all of one shape.

        An image with a map that is the same everywhere ranks nothing and is left out.
        """
        from scipy.stats import rankdata  # type: ignore[import-untyped]  # takes a second, for which only a study has to wait

        ranks = np.stack([rankdata(one.ravel()) for one in maps])
        ranks -= ranks.mean(axis=1, keepdims=True)
        length = np.linalg.norm(ranks, axis=1, keepdims=True)
        if not length.all():
            return self
        ranks /= length
        return RankAgreement(self.total + ranks @ ranks.T, self.weight + 1)

    @property
    def mean(self) -> Matrix:
        """The mean over images [sides, sides]; ValueError where none has been added."""
        if not self.weight:
            raise ValueError("rank agreement needs at least one image; none was added")
        return self.total / self.weight


def same_patches(selection: pa.Table, other: pa.Table) -> float:
    """Share of the highest patches of `selection` that are among those of `other` too.

    They are where one of the same image and label overlaps by SAME_SHARE. 0 where there are none.
    """
    theirs: defaultdict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
    for row in _highest(other):
        theirs[row["image_id"], row["label"]].append((row["y"], row["x"], row["size"]))
    found = [
        any(_shared((row["y"], row["x"], row["size"]), one) >= SAME_SHARE for one in of_image)
        for row in _highest(selection)
        for of_image in [theirs.get((row["image_id"], row["label"]), [])]
    ]
    return sum(found) / len(found) if found else 0.0


def _highest(selection: pa.Table) -> list[dict[str, Any]]:
    columns = ["image_id", "label", "kind", "y", "x", "size"]
    rows: list[dict[str, Any]] = selection.select(columns).to_pylist()
    return [row for row in rows if row["kind"] == HIGHEST]


def _shared(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    (y, x, size), (other_y, other_x, other_size) = first, second
    down = min(y + size, other_y + other_size) - max(y, other_y)
    across = min(x + size, other_x + other_size) - max(x, other_x)
    if down <= 0 or across <= 0:
        return 0.0
    return down * across / min(size, other_size) ** 2
