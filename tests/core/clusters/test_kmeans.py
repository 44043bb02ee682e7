from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from diffmining_core.clusters.kmeans import (
    ALGO,
    CLUSTER_SCHEMA,
    CLUSTER_SUMMARY_SCHEMA,
    adapted_k,
    cluster_label,
    cluster_selection,
    cluster_summary,
)
from diffmining_core.patches.selection import SELECTION_SCHEMA

Array = npt.NDArray[Any]


def blobs(sizes: list[int], d: int = 8, seed: int = 0) -> tuple[Array, Array]:
    """Unit features around as many well separated directions, and the blob of each."""
    rng = np.random.default_rng(seed)
    blob = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = np.eye(d)[blob] + rng.normal(0, 0.02, (len(blob), d))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), blob


def selection_of(labels: list[str], typicality: Array) -> pa.Table:
    n = len(labels)
    columns = {
        "image_id": [f"{i:032x}" for i in range(n)],
        "label": labels,
        "kind": ["highest"] * n,
        "rank": [0] * n,
        "y": [0] * n,
        "x": [0] * n,
        "size": [16] * n,
        "typicality": typicality,
        "uri": [f"/data/{i}.png" for i in range(n)],
        "label_rank": range(n),
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in SELECTION_SCHEMA], SELECTION_SCHEMA)


def test_known_groups_come_back_ranked_by_median_typicality() -> None:
    features, blob = blobs([30, 12, 20, 9])
    typicality = np.array([0.2, 0.9, -0.1, 0.5], np.float32)[blob]
    typicality[np.flatnonzero(blob == 0)[:10]] = 100  # moves the mean, not the median
    cluster, distance = cluster_label(features, typicality, 4)
    assert cluster.dtype == np.int32
    assert distance.dtype == np.float32
    expected_rank = np.array([2, 0, 3, 1])  # of blobs 0 … 3, by median
    np.testing.assert_array_equal(cluster, expected_rank[blob])
    for c in range(4):
        mean = features[cluster == c].mean(axis=0)
        expected = np.linalg.norm(features[cluster == c] - mean, axis=1)
        np.testing.assert_allclose(distance[cluster == c], expected, atol=1e-6)


def test_equal_medians_rank_by_the_first_member() -> None:
    features, blob = blobs([8, 8, 8], seed=3)
    cluster, _ = cluster_label(features, np.zeros(24, np.float32), 3)
    first = [int(np.flatnonzero(cluster == c)[0]) for c in range(3)]
    assert first == sorted(first)
    assert len(set(zip(cluster.tolist(), blob.tolist(), strict=True))) == 3


def test_the_same_call_gives_the_same_clusters() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(700, 16)).astype(np.float32)  # no groups: the hard case
    typicality = rng.normal(size=700).astype(np.float32)
    cluster, distance = cluster_label(features, typicality, 12)
    for _ in range(2):
        again = cluster_label(features, typicality, 12)
        np.testing.assert_array_equal(again[0], cluster)
        np.testing.assert_array_equal(again[1], distance)


def lloyd(points: Array, k: int, starts: int) -> float:
    """The least sum of squared distances that plain k-means comes to from so many random starts."""
    rng = np.random.default_rng(0)
    best = np.inf
    for _ in range(starts):
        means = points[rng.choice(len(points), k, replace=False)]
        for _ in range(100):
            squared = ((points[:, None] - means[None]) ** 2).sum(axis=2)
            nearest = squared.argmin(axis=1)
            means = np.stack(
                [points[nearest == c].mean(axis=0) if (nearest == c).any() else means[c]
                 for c in range(k)]
            )  # fmt: skip
        best = min(best, float(squared.min(axis=1).sum()))
    return best


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_a_fixed_point_of_lloyds_and_as_tight_as_its_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(240, 6)).astype(np.float32)  # no groups: many local optima
    typicality = rng.normal(size=240).astype(np.float32)
    cluster, distance = cluster_label(features, typicality, 5)
    points = features.astype(np.float64)
    means = np.stack([points[cluster == c].mean(axis=0) for c in range(5)])
    to_means = np.linalg.norm(points[:, None] - means[None], axis=2)
    np.testing.assert_array_equal(to_means.argmin(axis=1), cluster)
    np.testing.assert_allclose(distance, to_means.min(axis=1), rtol=1e-6)
    # Ten starts of each, drawn otherwise, come within 1 % of one another here.
    assert (distance.astype(np.float64) ** 2).sum() < 1.01 * lloyd(points, 5, starts=10)
    medians = [np.median(typicality[cluster == c]) for c in range(5)]
    assert medians == sorted(medians, reverse=True)


@pytest.mark.parametrize(("n", "distinct", "k"), [(1, 1, 1), (5, 1, 3), (40, 3, 8), (4, 4, 9)])
def test_no_cluster_is_empty(n: int, distinct: int, k: int) -> None:
    features = np.eye(max(distinct, 2), dtype=np.float32)[np.arange(n) % distinct]
    cluster, distance = cluster_label(features, np.arange(n, dtype=np.float32), k)
    assert set(cluster.tolist()) == set(range(min(distinct, k)))
    assert (distance == 0).all()


def test_nothing_to_cluster() -> None:
    cluster, distance = cluster_label(np.empty((0, 4), np.float32), np.empty(0, np.float32), 3)
    assert len(cluster) == len(distance) == 0


def test_features_and_patches_must_match() -> None:
    with pytest.raises(ValueError, match="3 features for 2 patches"):
        cluster_label(np.ones((3, 2), np.float32), np.ones(2, np.float32), 1)
    with pytest.raises(ValueError, match="3 features for 1 selected patches"):
        selection = selection_of(["a"], np.ones(1))
        cluster_selection(selection, np.ones((3, 2), np.float32), 1)


@pytest.mark.parametrize(
    ("n", "k", "expected"), [(192, 32, 32), (191, 32, 31), (1000, 32, 32), (7, 32, 1), (0, 32, 1)]
)
def test_adapted_k(n: int, k: int, expected: int) -> None:
    assert adapted_k(n, k) == expected


def test_the_tables_of_two_labels() -> None:
    features, blob = blobs([15, 15, 15])
    labels = [("rome", "oslo")[i % 2] for i in range(45)]
    typicality = np.array([0.1, 0.3, 0.2], np.float32)[blob]
    clusters = cluster_selection(selection_of(labels, typicality), features, 3)
    assert clusters.schema == CLUSTER_SCHEMA
    assert clusters.num_rows == 45
    keys = [("label", "ascending"), ("cluster", "ascending"), ("distance", "ascending")]
    assert clusters.equals(clusters.sort_by(keys).combine_chunks())

    summary = cluster_summary(clusters)
    assert summary.schema == CLUSTER_SUMMARY_SCHEMA
    assert summary["label"].to_pylist() == ["oslo"] * 3 + ["rome"] * 3
    assert summary["cluster"].to_pylist() == [0, 1, 2] * 2
    np.testing.assert_allclose(summary["median_typicality"].to_numpy(), [0.3, 0.2, 0.1] * 2)
    np.testing.assert_allclose(summary["min_typicality"].to_numpy(), [0.3, 0.2, 0.1] * 2)
    assert sum(summary["members"].to_pylist()) == 45

    assert cluster_summary(clusters.slice(0, 0)).schema == CLUSTER_SUMMARY_SCHEMA


def test_merging_finer_groups_finds_a_rare_element_that_k_means_throws_together() -> None:
    """A common one, which k-means cuts in two, and two rare ones that are nearer to each other."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.3, (120, 2))
    rare = [rng.normal([3, y], 0.02, (4, 2)) for y in (0.0, 1.5)]
    features = np.concatenate([common, *rare]).astype(np.float32)
    typicality = np.repeat([0.1, 0.3, 0.2], [120, 4, 4]).astype(np.float32)
    plain, _ = cluster_label(features, typicality, 3)
    assert len(set(plain[120:].tolist())) == 1
    merged, distance = cluster_label(features, typicality, 3, finer=4)
    assert merged.tolist() == [2] * 120 + [0] * 4 + [1] * 4
    mean = features[merged == 2].mean(axis=0)
    np.testing.assert_allclose(
        distance[:120], np.linalg.norm(features[:120] - mean, axis=1), atol=1e-5
    )


def test_merging_leaves_as_many_clusters_as_are_asked_for_where_there_are_enough() -> None:
    features, _ = blobs([5, 5, 5])
    typicality = np.zeros(15, np.float32)
    assert len(set(cluster_label(features, typicality, 4, finer=3)[0].tolist())) == 4
    few = np.eye(3, dtype=np.float32)[np.arange(9) % 3]
    assert len(set(cluster_label(few, typicality[:9], 5, finer=3)[0].tolist())) == 3


def test_golden() -> None:
    """Other clusters under the same ALGO would mix with those stored: raise it with them."""
    i = np.arange(60)
    features = np.stack([np.sin(i * (j + 1)) for j in range(6)], axis=1).astype(np.float32)
    cluster, _ = cluster_label(features, np.cos(i).astype(np.float32), 5)
    expected = "223421202421202322202322120342120242120232222234212024212023"
    assert (ALGO, "".join(map(str, cluster))) == ("kmeans-1", expected)
    merged, _ = cluster_label(features, np.cos(i).astype(np.float32), 5, finer=3)
    assert "".join(map(str, merged)) == (
        "222431022421022423022223102243102242102242302224310224210224"
    )
