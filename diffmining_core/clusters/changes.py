"""Which clusters of a label entered, left or moved between two states of them.

In: two cluster tables (CLUSTER_SCHEMA). Out: one `ClusterChange` for every cluster of either.

Clusters have no names that last: each k-means numbers them anew. They are told by their patches.

- A patch is the same in both states where it covers more than half of what it covered, in the same
  image for the same label. Patches of one state do not overlap, so that there is one such at most.
  A model that was finetuned anew and finds the same place a few pixels away finds the same patch.
- Only patches that both states have tell clusters apart: a label keeps a limited number, and what
  better ones pushed out says nothing about what is left. The overlap of an earlier cluster with a
  later one is 2s / (a + b), where s of their a and b such patches are shared: 1 for the same, 1/2
  where two of equal size share half.
- Clusters are paired one to one, so that the overlaps of all pairs of a label are as large together
  as can be. A pair is the same cluster if its overlap is at least `SAME_CLUSTER`, and the patches
  shared are at least `SAME_EVIDENCE` of the smaller of the two, counted whole: where nearly all
  patches were pushed out, the few that are left prove nothing.
- An earlier cluster without such a partner left, a later one entered. Of one that split, the part
  that shares most is the same cluster and the others entered; of several that merged, the one that
  gave most is the same cluster and the others left.
- Of those in both states, one moved if its place among them is another one than it was. A cluster
  that only makes room for one that entered, or closes up after one that left, did not move.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SAME_CLUSTER = 0.5
SAME_EVIDENCE = 0.25

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class ClusterChange:
    """One cluster of a label; ranks are 0-based, None in the state where it is not."""

    label: str
    kind: Literal["entered", "left", "moved", "stayed"]
    before: int | None
    after: int | None


def cluster_changes(before: pa.Table, after: pa.Table) -> list[ClusterChange]:
    """What became of each cluster: by label, those of now by rank, then those that left.

    Both tables need label, cluster, image_id, y, x and size; the order of their rows is no matter.
    """
    earlier, later = _by_label(before), _by_label(after)
    return [
        change
        for label in sorted(earlier.keys() | later.keys())
        for change in _label_changes(label, earlier.get(label, []), later.get(label, []))
    ]


@dataclass(frozen=True)
class _Patch:
    image_id: str
    y: int
    x: int
    size: int
    cluster: int

    def covers(self, other: _Patch) -> bool:
        """Whether the two share more than half of the larger one's area."""
        down = min(self.y + self.size, other.y + other.size) - max(self.y, other.y)
        across = min(self.x + self.size, other.x + other.size) - max(self.x, other.x)
        shared = max(down, 0) * max(across, 0)
        return 2 * shared > max(self.size, other.size) ** 2


def _by_label(table: pa.Table) -> dict[str, list[_Patch]]:
    found: dict[str, list[_Patch]] = defaultdict(list)
    names = ["label", "image_id", "y", "x", "size", "cluster"]
    for label, *patch in zip(*(table[name].to_pylist() for name in names), strict=True):
        found[label].append(_Patch(*patch))
    return found


def _label_changes(label: str, earlier: list[_Patch], later: list[_Patch]) -> list[ClusterChange]:
    partners = _partners(earlier, later)
    places = {rank: place for place, rank in enumerate(sorted(partners.values()))}
    changes = []
    for rank in sorted({patch.cluster for patch in later}):
        if rank not in partners:
            changes.append(ClusterChange(label, "entered", None, rank))
            continue
        place = sum(other < rank for other in partners)
        kind: Any = "stayed" if places[partners[rank]] == place else "moved"
        changes.append(ClusterChange(label, kind, partners[rank], rank))
    gone = {patch.cluster for patch in earlier} - set(partners.values())
    return changes + [ClusterChange(label, "left", rank, None) for rank in sorted(gone)]


def _partners(earlier: list[_Patch], later: list[_Patch]) -> dict[int, int]:
    """The earlier rank of each later cluster that is the same one."""
    # Takes a second, for which a night with nothing new need not wait.
    from scipy.optimize import (  # type: ignore[import-untyped]  # ships no types
        linear_sum_assignment,
    )

    rows, row_sizes = np.unique([patch.cluster for patch in earlier], return_counts=True)
    columns, column_sizes = np.unique([patch.cluster for patch in later], return_counts=True)
    shared = _shared(earlier, later, _index(rows), _index(columns))
    both = shared.sum(1)[:, None] + shared.sum(0)
    overlap = 2 * shared / np.maximum(both, 1)
    smaller = np.minimum(row_sizes[:, None], column_sizes)
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return {
        int(columns[c]): int(rows[r])
        for r, c in pairs
        if overlap[r, c] >= SAME_CLUSTER and shared[r, c] >= SAME_EVIDENCE * smaller[r, c]
    }


def _index(ranks: Ranks) -> dict[int, int]:
    return {int(rank): place for place, rank in enumerate(ranks)}


def _shared(
    earlier: list[_Patch], later: list[_Patch], rows: Mapping[int, int], columns: Mapping[int, int]
) -> Ranks:
    """The patches that both states have, [earlier clusters, later clusters]."""
    by_image: dict[str, list[_Patch]] = defaultdict(list)
    for patch in earlier:
        by_image[patch.image_id].append(patch)
    shared = np.zeros((len(rows), len(columns)), np.int64)
    for patch in later:
        for was in by_image[patch.image_id]:
            if patch.covers(was):
                shared[rows[was.cluster], columns[patch.cluster]] += 1
    return shared
