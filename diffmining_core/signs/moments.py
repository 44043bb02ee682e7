"""Sums over the typicality maps of one label, from which the signs of weak maps follow.

In: maps of any shapes with their sums of squared deviations. Out: `LabelMoments`, which add up, so
shards may come in any order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Collection

    from diffmining_core.store.maps import RaggedMaps


@dataclass(frozen=True)
class Spread:
    """Count, sum and sum of squares of some numbers."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Spread:
        """Of an array of any shape, summed in float64."""
        exact = values.astype(np.float64)
        return cls(values.size, float(exact.sum()), float((exact**2).sum()))

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def mean(self) -> float:
        """Their mean; 0 of none."""
        return self.total / self.count if self.count else 0.0

    @property
    def mean_square(self) -> float:
        """The mean of their squares; 0 of none."""
        return self.squares / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Their unbiased variance; 0 of fewer than two."""
        if self.count < 2:
            return 0.0
        return max(self.squares - self.total * self.mean, 0.0) / (self.count - 1)


@dataclass(frozen=True)
class LabelMoments:
    """What is summed over the maps of one label.

    Attributes:
        positions: typicality at every latent position.
        error_squares: its squared standard error at every position (float, as `Spread`).
        patches: mean typicality of squares of positions as large as a patch, side by side.
        trained: mean typicality of each image that the model may have been trained on.
        held_out: the same of each image that was kept out of training.
        positive: images whose summed typicality is above 0.
        null_loss: the loss without the label, one number per map.
        edge: typicality above 0 in the outermost positions of a map, and 0 where it is not.
        above: the same at every position.
    """

    positions: Spread = Spread()
    error_squares: Spread = Spread()
    patches: Spread = Spread()
    trained: Spread = Spread()
    held_out: Spread = Spread()
    positive: int = 0
    null_loss: Spread = Spread()
    edge: Spread = Spread()
    above: Spread = Spread()

    def __add__(self, other: LabelMoments) -> LabelMoments:
        return LabelMoments(
            *(getattr(self, part.name) + getattr(other, part.name) for part in fields(self))
        )

    @property
    def images(self) -> int:
        """How many maps were added up."""
        return self.trained.count + self.held_out.count


def label_moments(
    maps: RaggedMaps, side: int, held_out: Collection[str] = ()
) -> dict[str, LabelMoments]:
    """The moments of each label's maps of one unit.

    side: of a patch in latent positions. held_out: ids of the images kept out of training.
    """
    groups: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
    for i, (label, (height, width)) in enumerate(zip(maps.label, maps.hw.tolist(), strict=True)):
        groups[label, height, width].append(i)
    moments: defaultdict[str, LabelMoments] = defaultdict(LabelMoments)
    for (label, _, _), rows in groups.items():
        means = np.stack([maps.map(i) for i in rows])
        errors = np.stack([maps.standard_error(i) for i in rows])
        kept_out = np.array([maps.image_id[i] in held_out for i in rows])
        moments[label] += _moments(means, errors, maps.null_loss[rows], kept_out, side)
    return dict(moments)


def _moments(
    means: NDArray[np.float32],
    errors: NDArray[np.float32],
    null_loss: NDArray[np.float32],
    kept_out: NDArray[np.bool_],
    side: int,
) -> LabelMoments:
    """Of maps [n, h, w] of one shape."""
    of_image = means.mean(axis=(1, 2), dtype=np.float64)
    above = np.maximum(means, 0)
    inside = np.zeros(means.shape[1:], bool)
    inside[1:-1, 1:-1] = True
    return LabelMoments(
        positions=Spread.of(means),
        error_squares=Spread.of(errors.astype(np.float64) ** 2),
        patches=Spread.of(_squares(means, side)),
        trained=Spread.of(of_image[~kept_out]),
        held_out=Spread.of(of_image[kept_out]),
        positive=int((of_image > 0).sum()),
        null_loss=Spread.of(null_loss),
        edge=Spread.of(above[:, ~inside]),
        above=Spread.of(above),
    )


def _squares(means: NDArray[np.float32], side: int) -> NDArray[np.floating]:
    """Means of squares of side × side positions that lie side by side; none in a smaller map."""
    n, height, width = means.shape
    down, across = height // side, width // side
    cut = means[:, : down * side, : across * side].astype(np.float64)
    squares: NDArray[np.floating] = cut.reshape(n, down, side, across, side).mean(axis=(2, 4))
    return squares
