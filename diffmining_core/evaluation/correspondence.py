"""Joint clusters against the elements planted in the drawn scenes: does a cluster hold one kind?

A sequence lies at one place of a source image and of its translations, so that what was planted
there in the source (a roof, a lamp) is the kind of element it should show under every label: roof
corresponds to roof, whichever label's roof it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffmining_core.evaluation.planted import HIT_SHARE, Box, boxes_by_uri

if TYPE_CHECKING:
    import pyarrow as pa

PURE = 0.8
"""A cluster holds one kind of element if at least this share of its members are of that kind."""

DEALS = 200
"""Random deals that chance is told from."""

ALGO = "correspondence-1"
"""Version of these measures; part of their units' keys."""


@dataclass(frozen=True)
class ClusterKind:
    """The kind of element most members of a cluster are of, and their share of it.

    kind: None where no member is on an element.
    """

    cluster: int
    members: int
    kind: str | None
    purity: float

    @property
    def is_pure(self) -> bool:
        """Whether it holds one kind of element."""
        return self.purity >= PURE


def kind_at(boxes: Iterable[Box], y: int, x: int, size: int) -> str | None:
    """The one kind of element that a patch shows, typical or common; None if it hits none.

    Of several that it hits, that of which it has the most; of equal ones the first by name.
    """
    overlaps = sorted((-box.overlap(y, x, size), box.element) for box in boxes)
    if not overlaps or -overlaps[0][0] < HIT_SHARE:
        return None
    return overlaps[0][1]


def correspondence(clusters: pa.Table, uris: Mapping[str, str], truth: pa.Table) -> dict[str, Any]:
    """How well the joint clusters (JOINT_SCHEMA, one or more) keep kinds of elements apart.

    uris gives the address of each source image by its id. The result, as JSON: `one_kind`, the
    share of clusters that hold one kind by the rule of PURE (`pure`); `by_chance`, that share where
    the same sequences are dealt at random to clusters of the same sizes; `clusters`, each one's
    kind and purity; `kinds`, the share of all sequences that are of each kind.
    """
    columns = ["cluster", "image_id", "y", "x", "size"]
    rows = clusters.select(columns).to_pylist()
    boxes = boxes_by_uri(truth, {uris[row["image_id"]] for row in rows})
    members: dict[int, list[str | None]] = {}
    for row in rows:
        kind = kind_at(boxes[uris[row["image_id"]]], row["y"], row["x"], row["size"])
        members.setdefault(row["cluster"], []).append(kind)
    of_clusters = [_cluster_kind(cluster, kinds) for cluster, kinds in sorted(members.items())]
    every = [kind for kinds in members.values() for kind in kinds]
    return {
        "pure": PURE,
        "one_kind": sum(one.is_pure for one in of_clusters) / len(of_clusters),
        "by_chance": _by_chance(every, [one.members for one in of_clusters]),
        "kinds": {kind: count / len(rows) for kind, count in _counted(every)},
        "clusters": [asdict(one) for one in of_clusters],
    }


def _by_chance(kinds: Sequence[str | None], sizes: Sequence[int]) -> float:
    """The mean share of clusters of these sizes that hold one kind, over DEALS random deals."""
    names = sorted({kind for kind in kinds if kind is not None})
    codes = np.array([len(names) if kind is None else names.index(kind) for kind in kinds])
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    pure = 0
    for _ in range(DEALS):
        counts = np.zeros((len(sizes), len(names) + 1), np.int64)
        np.add.at(counts, (cluster, rng.permutation(codes)), 1)
        commonest = counts[:, :-1].max(axis=1, initial=0)
        pure += int((commonest / np.array(sizes) >= PURE).sum())
    return pure / (DEALS * len(sizes))


def _cluster_kind(cluster: int, kinds: list[str | None]) -> ClusterKind:
    kind, count = next(iter(_counted(kinds)), (None, 0))
    return ClusterKind(cluster, len(kinds), kind, count / len(kinds))


def _counted(kinds: Iterable[str | None]) -> list[tuple[str, int]]:
    """Each kind with its number, the commonest first, of equal ones the first by name."""
    counts = Counter(kind for kind in kinds if kind is not None)
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))
