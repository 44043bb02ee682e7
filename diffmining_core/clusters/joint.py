"""Joint clusters: sequences that look alike under every label, whatever the look is.

In: the features of each sequence's patch under each label. Out: a cluster for each sequence. Every
label's features are embedded for themselves (UMAP, McInnes et al. 2018) and laid side by side, so
that each label has the same say; k-means groups them, and the groups are ranked by the median
co-typicality of their members.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.clusters.kmeans import adapted_k, cluster_label
from diffmining_core.patches.sequences import SEQUENCE_SCHEMA

ALGO = "joint-1"

DIMENSIONS = 32
NEIGHBOURS = 15
SEED = 10  # of UMAP and of k-means

JOINT_SCHEMA = pa.schema(
    [
        *SEQUENCE_SCHEMA,
        pa.field("cluster", pa.int32()),  # rank of the cluster, 0 the most co-typical
        pa.field("distance", pa.float32()),  # Euclidean, of the embedding to its cluster's mean
    ]
)

JOINT_SUMMARY_SCHEMA = pa.schema(
    [("cluster", pa.int32()), ("members", pa.int32()), ("median_cotypicality", pa.float32())]
)

Matrix = npt.NDArray[np.floating[Any]]


def is_few(n: int) -> bool:
    """Whether so many sequences are embedded by `principal_components` in place of UMAP.

    UMAP starts from as many eigenvectors of the neighbourhood graph as it has dimensions and one
    more, which a graph of no more points does not have.
    """
    return n <= DIMENSIONS + 1


def embedded(features: Matrix) -> npt.NDArray[np.float32]:
    """The features [n, d] of one label in DIMENSIONS dimensions, or fewer where n or d is less.

    The same for the same features, whatever the number of threads.
    """
    if is_few(len(features)):
        return principal_components(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # it says what it could do with Tensorflow
        from umap import UMAP  # takes seconds, for which only clustering has to wait

    # With several threads, the sums of distances depend on how they are shared out.
    with threadpool_limits(1):
        umap = UMAP(
            n_components=min(DIMENSIONS, features.shape[1]),
            n_neighbors=NEIGHBOURS,
            random_state=SEED,
            n_jobs=1,
        )
        points: npt.NDArray[np.float32] = umap.fit_transform(features.astype(np.float32))
    return points


def principal_components(features: Matrix) -> npt.NDArray[np.float32]:
    """The features [n, d] along their directions of most variance, at most DIMENSIONS of them.

    A direction's sign is that which makes its largest coordinate positive.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = (left * scale)[:, :DIMENSIONS]
    largest = points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])]
    return np.asarray(points * np.where(largest < 0, -1, 1), np.float32)


def joint_embedding(features: Iterable[Matrix]) -> npt.NDArray[np.float32]:
    """All labels' embeddings of n sequences side by side, float32 [n, labels × dimensions].

    features: [n, d] for each label in turn; one is held at a time. ValueError if their n differ.
    """
    parts = [embedded(of_label) for of_label in features]
    if len({len(part) for part in parts}) != 1:
        raise ValueError(f"labels should have one n, not {[len(part) for part in parts]}")
    return np.concatenate(parts, axis=1)


def joint_clusters(sequences: pa.Table, features: Iterable[Matrix], k: int) -> pa.Table:
    """The sequences with their clusters (JOINT_SCHEMA), by cluster and distance, nearest first.

    sequences: n rows of SEQUENCE_SCHEMA. features: [n, d] for each label in turn. There are
    `adapted_k` clusters. The centre of a cluster is its nearest member, the first.
    """
    n = sequences.num_rows
    points = joint_embedding(features) if n else np.empty((0, DIMENSIONS), np.float32)
    if len(points) != n:
        raise ValueError(f"{len(points)} features for {n} sequences")
    cotypicality = sequences["cotypicality"].to_numpy()
    cluster, distance = cluster_label(points, cotypicality, adapted_k(n, k), SEED)
    table = sequences.append_column("cluster", pa.array(cluster))
    table = table.append_column("distance", pa.array(distance)).cast(JOINT_SCHEMA)
    nearest_first = np.lexsort((np.arange(n), distance, cluster))
    return table.take(nearest_first).combine_chunks()


def joint_summary(clusters: pa.Table) -> pa.Table:
    """One row (JOINT_SUMMARY_SCHEMA) per cluster of a table of JOINT_SCHEMA, by rank."""
    cluster, cotypicality = clusters["cluster"].to_numpy(), clusters["cotypicality"].to_numpy()
    rows = [
        {
            "cluster": int(rank),
            "members": int((cluster == rank).sum()),
            "median_cotypicality": float(np.median(cotypicality[cluster == rank])),
        }
        for rank in np.unique(cluster)
    ]
    return pa.Table.from_pylist(rows, schema=JOINT_SUMMARY_SCHEMA)
