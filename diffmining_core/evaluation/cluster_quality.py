"""How good the clusters of a label are: mixed, duplicate, or one kind of element each.

What an element is, is known of drawn scenes; of other images only how tight and how far apart the
clusters are in feature space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.clusters.density import LEFT_OUT
from diffmining_core.evaluation.correspondence import PURE, kind_at
from diffmining_core.evaluation.planted import boxes_by_uri

ALGO = "cluster-quality-1"
"""Version of these measures; part of their units' keys."""

MEMBERS = 6
"""From which a cluster is one that a person is shown, as in the paper."""

NOTHING = "nothing"
"""The kind of a patch on no planted element."""

Clusters = npt.NDArray[np.integer[Any]]


def kinds_of(patches: pa.Table, truth: pa.Table) -> list[str]:
    """The kind of planted element that each patch shows, or NOTHING."""
    boxes = boxes_by_uri(truth, dict.fromkeys(patches["uri"].to_pylist()))
    rows = patches.select(["uri", "y", "x", "size"]).to_pylist()
    return [kind_at(boxes[row["uri"]], row["y"], row["x"], row["size"]) or NOTHING for row in rows]


def kind_quality(cluster: Clusters, kinds: Sequence[str]) -> dict[str, float]:
    """How well the clusters [n] (LEFT_OUT for none) of one label keep the kinds [n] apart.

    Of the clusters of at least MEMBERS: `mixed`, the share of those of which less than PURE is of
    one kind; `duplicate`, the share of the clusters that are of one kind and not the first of it;
    `found`, how many kinds of elements have a cluster of their own; `purity`, the share of their
    members that are of their cluster's commonest kind. And of all patches `v_measure` (Rosenberg
    and Hirschberg 2007), in which a patch left out is alone: 1 where clusters and kinds are one.
    """
    from sklearn.metrics import v_measure_score  # takes seconds, which not all studies need

    kind = np.array(kinds)
    commonest = [
        (*Counter(kind[cluster == one].tolist()).most_common(1)[0], int((cluster == one).sum()))
        for one in _shown(cluster)
    ]
    own = [name for name, count, members in commonest if count >= PURE * members]
    shown = max(len(commonest), 1)
    alone = np.where(cluster == LEFT_OUT, cluster.max() + 1 + np.arange(len(cluster)), cluster)
    return {
        "mixed": (len(commonest) - len(own)) / shown,
        "duplicate": (len(own) - len(set(own))) / shown,
        "found": float(len(set(own) - {NOTHING})),
        "purity": sum(count for _, count, _ in commonest)
        / max(sum(members for *_, members in commonest), 1),
        "v_measure": float(v_measure_score(kind, alone)),
    }


def shape_quality(cluster: Clusters, features: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
    """How the clusters [n] (LEFT_OUT for none) of one label lie among the features [n, d].

    `clusters`, how many have at least MEMBERS; `left_out`, the share of patches in none of those;
    `close`, the share of those clusters whose mean is nearer to that of another than the members
    of the two are to their own, on average; `silhouette` (Rousseeuw 1987) of their members, mean:
    1 for tight clusters far apart, below 0 where members are nearer to another; 0 for one alone.
    """
    from sklearn.metrics import silhouette_score

    shown = _shown(cluster)
    kept = np.isin(cluster, shown)
    points = features.astype(np.float64)
    means = [points[cluster == one].mean(axis=0) for one in shown]
    radii = [
        float(np.linalg.norm(points[cluster == one] - mean, axis=1).mean())
        for one, mean in zip(shown, means, strict=True)
    ]
    close = sum(
        any(
            np.linalg.norm(means[i] - means[j]) < (radii[i] + radii[j]) / 2
            for j in range(len(shown))
            if j != i
        )
        for i in range(len(shown))
    )
    return {
        "clusters": float(len(shown)),
        "left_out": 1 - float(kept.mean()),
        "close": close / max(len(shown), 1),
        "silhouette": float(silhouette_score(points[kept], cluster[kept]))
        if len(shown) > 1
        else 0.0,
    }


def _shown(cluster: Clusters) -> list[int]:
    numbers, members = np.unique(cluster, return_counts=True)
    return [
        int(one)
        for one, count in zip(numbers, members, strict=True)
        if one != LEFT_OUT and count >= MEMBERS
    ]
