"""Are the clusters groups? Their tightness, and whether two of them are one.

In: the features of one label's highest patches and the cluster of each. Out: signs of clusters that
are mixed and of clusters that are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.signs.sign import Sign, percent

AXES = 64
"""Principal axes that the comparison keeps."""
CLOUDS = 3
"""Shapeless clouds that are clustered for comparison."""

MOST_SPREAD = 0.95
"""Of the clusters' spread over that of clusters of a shapeless cloud.

Groups came to 0.7 to 0.85 in drawn scenes and 0.8 to 0.93 in photos of garments, features without
groups come to 1.
"""
LOOSE = 0.95
"""A cluster’s spread over the label’s: its patches are nearly as unlike as any of the label."""
SAME = 0.6
"""Distance of two centroids over the spread of their members.

Clusters that are apart came to 0.67 and more; halves of one group of many dimensions lie below.
"""

FEW_PATCHES, FEW_MEMBERS = 40, 6
SEED = 10


@dataclass(frozen=True)
class Grouping:
    """How clusters lie: centroids [k, d], members [k], spread [k], root mean square distances.

    label_spread: the spread of all patches around their mean. tightness: the clusters' squared
    spread over that of as many clusters of a shapeless cloud of the same covariance.
    """

    centroids: NDArray[np.float64]
    members: NDArray[np.int64]
    spread: NDArray[np.float64]
    label_spread: float
    tightness: float

    def loose(self) -> list[int]:
        """The clusters, by rank, whose members are about as unlike as all patches."""
        wide = self.spread >= LOOSE * self.label_spread
        return np.flatnonzero(wide & (self.members >= FEW_MEMBERS)).tolist()

    def same(self) -> list[tuple[int, int]]:
        """The pairs of clusters (by rank, the better first) that are one, the closest first."""
        k = len(self.members)
        first, second = np.triu_indices(k, 1)
        apart = np.linalg.norm(self.centroids[first] - self.centroids[second], axis=1)
        spread = np.sqrt((self.spread[first] ** 2 + self.spread[second] ** 2) / 2)
        enough = np.minimum(self.members[first], self.members[second]) >= FEW_MEMBERS
        close = np.flatnonzero(enough & (apart < SAME * spread))
        nearest_first = close[np.argsort((apart / np.maximum(spread, 1e-12))[close], kind="stable")]
        return [(int(first[at]), int(second[at])) for at in nearest_first]


def grouping(features: NDArray[np.floating[Any]], cluster: NDArray[np.integer[Any]]) -> Grouping:
    """Of features [n, d] and the rank of each one's cluster [n], ranks being 0 … k - 1."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    points, scales = centred @ axes[:AXES].T, scales[:AXES]
    k = int(cluster.max()) + 1
    centroids, spread, inertia = _clustered(points, cluster, k)
    return Grouping(
        centroids=centroids,
        members=np.bincount(cluster, minlength=k),
        spread=spread,
        label_spread=float(np.sqrt((points**2).sum() / len(points))),
        tightness=inertia / _shapeless_inertia(len(points), scales, k),
    )


def _clustered(
    points: NDArray[np.float64], cluster: NDArray[np.integer[Any]], k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Centroids, spread, and sum of squared distances to the own centroid."""
    centroids = np.stack([points[cluster == rank].mean(axis=0) for rank in range(k)])
    squares = ((points - centroids[cluster]) ** 2).sum(axis=1)
    spread = np.sqrt([squares[cluster == rank].mean() for rank in range(k)])
    return centroids, spread, float(squares.sum())


def _shapeless_inertia(n: int, scales: NDArray[np.float64], k: int) -> float:
    """Mean sum of squared distances in k-means of n normal points with these singular values."""
    from sklearn.cluster import KMeans  # takes seconds, for which only clustering has to wait

    rng = np.random.default_rng(SEED)
    inertias = []
    for _ in range(CLOUDS):
        cloud = rng.standard_normal((n, len(scales))) * (scales / np.sqrt(n))
        with threadpool_limits(1, user_api="openmp"):  # sums in one order
            inertias.append(KMeans(k, n_init=3, random_state=SEED).fit(cloud).inertia_)
    return max(float(np.mean(inertias)), 1e-12)


def grouping_signs(label: str, found: Grouping) -> Iterator[tuple[Sign, list[int]]]:
    """The signs of one label's clusters, each with the ranks of the clusters that show it."""
    if found.members.sum() < FEW_PATCHES or len(found.members) < 2:
        return
    loose = found.loose()
    if found.tightness >= MOST_SPREAD or loose:
        evidence = (
            f"The spread within its clusters is {percent(found.tightness)} of that within clusters "
            "of a cloud that has no groups."
            if found.tightness >= MOST_SPREAD
            else f"The patches of {_clusters(loose)} are about as unlike as any two of the label."
        )
        yield (
            Sign(
                name="mixed",
                label=label,
                severity="note",
                what="Clusters are mixed: their patches do not show one thing.",
                evidence=evidence,
                advice="Try more clusters (--k); if that does not help, the patches have no "
                "groups, so finetune longer or take more images.",
                about="Patches of the loosest clusters, a row each.",
            ),
            (loose or np.argsort(-found.spread, kind="stable").tolist())[:3],
        )
    if pairs := found.same():
        named = [f"{a + 1} and {b + 1}" for a, b in pairs[:3]]
        more = f", and {len(pairs) - 3} pairs more" if len(pairs) > 3 else ""
        yield (
            Sign(
                name="duplicate",
                label=label,
                severity="note",
                what="Clusters show the same thing twice.",
                evidence=f"The centres of clusters {', '.join(named)}{more} are closer together "
                f"than {SAME:g} of their patches’ spread.",
                advice="Try fewer clusters (--k).",
                about="Patches of the two closest clusters, a row each.",
            ),
            list(pairs[0]),
        )


def _clusters(ranks: list[int]) -> str:
    numbers = ", ".join(str(rank + 1) for rank in ranks[:5])
    return f"cluster{'s' if len(ranks) > 1 else ''} {numbers}"
