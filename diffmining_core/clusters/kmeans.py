"""k-means over the features of a label's patches, clusters ranked by median typicality."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.patches.selection import SELECTION_SCHEMA

ALGO = "kmeans-1"

MIN_MEMBERS = 6  # per cluster on average: what a row of the figure shows
STARTS = 10  # k-means keeps the best of these; a single one can end in a poor local optimum

CLUSTER_SCHEMA = pa.schema(
    [
        *SELECTION_SCHEMA,
        pa.field("cluster", pa.int32()),  # rank of the cluster in its label, 0 the most typical
        pa.field("distance", pa.float32()),  # Euclidean, of the feature to its cluster's mean
    ]
)
CLUSTER_SUMMARY_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("cluster", pa.int32()),
        ("members", pa.int32()),
        ("median_typicality", pa.float32()),
        ("min_typicality", pa.float32()),
        ("max_typicality", pa.float32()),
        ("spread", pa.float32()),  # of the members' typicality: third quartile less first
    ]
)


Points = npt.NDArray[np.float64]


def adapted_k(n: int, k: int) -> int:
    """The number of clusters to ask of n patches: k, or fewer so that each has 6 on average.

    Differs from the paper, whose k is fixed, only below 6·k patches; callers report it.
    """
    return k if n >= MIN_MEMBERS * k else max(1, n // MIN_MEMBERS)


def cluster_label(
    features: npt.NDArray[np.floating[Any]],
    typicality: npt.NDArray[np.floating[Any]],
    k: int,
    seed: int = 10,
    finer: int = 1,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Cluster the patches of one label: the cluster of each [n] and its distance to the mean [n].

    features is [n, d], typicality [n]. Clusters are numbered by the median typicality of their
    members, descending (as in the paper); equal medians by their first member. There are k of
    them, or as many as there are distinct features when those are fewer; none is empty.

    finer: k-means makes so many times k groups, which average linkage of their means then merges
    into k clusters; 1 for k-means alone, as in the paper. k-means cuts what is common into several
    clusters of about equal size and throws what is rare together; merging its groups does neither.
    """
    if len(features) != len(typicality):
        raise ValueError(f"{len(features)} features for {len(typicality)} patches")
    if not len(features):
        return np.empty(0, np.int32), np.empty(0, np.float32)
    points = features.astype(np.float64)
    k = min(k, len(np.unique(points, axis=0)))
    assigned = kmeans(points, k, seed) if finer == 1 else _merged(points, k, seed, finer)
    return ranked(points, typicality, assigned)


def kmeans(points: Points, k: int, seed: int) -> npt.NDArray[np.int32]:
    """The group of each point [n, d], in no order."""
    from sklearn.cluster import KMeans  # takes seconds, for which only clustering has to wait

    # With several threads the sums, and so now and then an assignment, depend on who comes first.
    with threadpool_limits(1, user_api="openmp"):
        groups: npt.NDArray[np.int32] = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(
            points
        )
    return groups


def _merged(points: Points, k: int, seed: int, finer: int) -> npt.NDArray[np.int32]:
    from sklearn.cluster import AgglomerativeClustering

    groups = kmeans(points, min(finer * k, len(np.unique(points, axis=0))), seed)
    means = np.stack([points[groups == group].mean(axis=0) for group in range(groups.max() + 1)])
    if len(means) <= k:
        return groups
    of_group = AgglomerativeClustering(k, linkage="average").fit_predict(means)
    return np.asarray(of_group[groups], np.int32)


def ranked(
    points: Points,
    typicality: npt.NDArray[np.floating[Any]],
    assigned: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The groups of the points [n, d], numbered as `cluster_label` does, and the distances."""
    members = [np.flatnonzero(assigned == c) for c in np.unique(assigned)]
    members.sort(key=lambda rows: (-np.median(typicality[rows]), rows[0]))
    cluster = np.empty(len(points), np.int32)
    distance = np.empty(len(points), np.float32)
    for rank, rows in enumerate(members):
        cluster[rows] = rank
        distance[rows] = np.linalg.norm(points[rows] - points[rows].mean(axis=0), axis=1)
    return cluster, distance


def cluster_selection(
    selection: pa.Table,
    features: npt.NDArray[np.floating[Any]],
    k: int,
    seed: int = 10,
    finer: int = 1,
) -> pa.Table:
    """The cluster table (CLUSTER_SCHEMA) of selected patches, each label clustered for itself.

    selection holds patches of one kind (for the gallery, the highest) of any number of labels;
    features [n, d] belong to its n rows, in order. Each label is asked for `adapted_k` clusters;
    finer as in `cluster_label`.
    Sorted by label, cluster and distance, nearest first.
    """
    if len(features) != selection.num_rows:
        raise ValueError(f"{len(features)} features for {selection.num_rows} selected patches")
    label, typicality = selection["label"].to_numpy(), selection["typicality"].to_numpy()
    parts = [CLUSTER_SCHEMA.empty_table()]
    for name in np.unique(label.astype(str)):
        rows = np.flatnonzero(label == name)
        cluster, distance = cluster_label(
            features[rows], typicality[rows], adapted_k(len(rows), k), seed, finer
        )
        table = selection.take(rows).append_column("cluster", pa.array(cluster))
        table = table.append_column("distance", pa.array(distance))
        nearest_first = np.lexsort((np.arange(len(rows)), distance, cluster))
        parts.append(table.cast(CLUSTER_SCHEMA).take(nearest_first))
    return pa.concat_tables(parts).combine_chunks()


def cluster_summary(clusters: pa.Table) -> pa.Table:
    """One row (CLUSTER_SUMMARY_SCHEMA) per cluster of a cluster table, in its order."""
    label, cluster = (clusters[name].to_numpy() for name in ("label", "cluster"))
    typicality = clusters["typicality"].to_numpy()
    rows = []
    for name, rank in dict.fromkeys(zip(label, cluster, strict=True)):
        values = typicality[(label == name) & (cluster == rank)]
        first, third = np.quantile(values, (0.25, 0.75))
        ends = (values.min(), values.max())
        rows.append((name, rank, len(values), np.median(values), *ends, third - first))
    columns = zip(*rows, strict=True) if rows else [()] * len(CLUSTER_SUMMARY_SCHEMA)
    return pa.table(
        [
            pa.array(column, field.type)
            for column, field in zip(columns, CLUSTER_SUMMARY_SCHEMA, strict=True)
        ],
        schema=CLUSTER_SUMMARY_SCHEMA,
    )
