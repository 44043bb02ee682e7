"""What looks alike by the model's own features: patches of a label, clusters of all labels.

In: DIFT features of patches, float32 [n, d]. Likeness is the cosine of two features, or of the
means of two clusters' features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AlikeCluster:
    """A cluster of another label; likeness in [-1, 1]."""

    label: str
    cluster: int
    likeness: float


@dataclass(frozen=True)
class ClusterLikeness:
    """The mean feature of every cluster, at length one: means [clusters, d], d × 4 bytes each.

    place: the row of a label's cluster.
    """

    place: Mapping[tuple[str, int], int]
    means: Vectors

    def elsewhere(self, label: str, cluster: int, count: int) -> list[AlikeCluster]:
        """The clusters of other labels that look most like this one, at most one of each label."""
        if (label, cluster) not in self.place:
            return []
        likeness = self.means @ self.means[self.place[label, cluster]]
        names = list(self.place)
        found: dict[str, AlikeCluster] = {}
        for row in np.argsort(-likeness, kind="stable"):
            other, number = names[row]
            if other != label and other not in found:
                found[other] = AlikeCluster(other, number, float(likeness[row]))
            if len(found) == count:
                break
        return list(found.values())


def cluster_likeness(labels: Iterable[tuple[str, Sequence[int], Vectors]]) -> ClusterLikeness:
    """Of each label in turn its patches' clusters [n] and features [n, d]."""
    place: dict[tuple[str, int], int] = {}
    means: list[Vectors] = []
    for label, clusters, features in labels:
        numbers = np.asarray(clusters)
        for cluster in np.unique(numbers):
            place[label, int(cluster)] = len(means)
            means.append(features[numbers == cluster].mean(axis=0))
    return ClusterLikeness(
        place, unit_length(np.stack(means)) if means else np.empty((0, 0), np.float32)
    )


def unit_length(features: Vectors) -> Vectors:
    """The features [n, d] at length one; those of no length stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths > 0, lengths, 1), np.float32)


def most_alike(features: Vectors, count: int) -> npt.NDArray[np.intp]:
    """For each of n features [n, d] the numbers of its `count` nearest others, [n, <= count]."""
    units = unit_length(features)
    likeness = units @ units.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, : min(count, len(features) - 1)]
