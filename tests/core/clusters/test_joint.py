from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.clusters.joint import (
    ALGO,
    DIMENSIONS,
    JOINT_SCHEMA,
    JOINT_SUMMARY_SCHEMA,
    embedded,
    joint_clusters,
    joint_embedding,
    joint_summary,
    principal_components,
)
from diffmining_core.patches.sequences import SEQUENCE_SCHEMA

Array = npt.NDArray[Any]


def sequence_rows(cotypicality: Array) -> pa.Table:
    rows = [
        {
            "image_id": f"{i:032x}",
            "label": "oslo",
            "rank": 0,
            "y": 0,
            "x": 0,
            "size": 16,
            "cotypicality": float(value),
            "labels": ["oslo", "rome"],
            "typicality": [0.0, 0.0],
            "own": ["oslo"],
        }
        for i, value in enumerate(cotypicality)
    ]
    return pa.Table.from_pylist(rows, schema=SEQUENCE_SCHEMA)


def directions(group: Array, seed: int, d: int = 40) -> Array:
    """Unit features around a direction for each group, other ones for each seed."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(d, d)))[0][: group.max() + 1]
    features = centres[group] + rng.normal(0, 0.03, (len(group), d))
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def four_groups() -> tuple[Array, list[Array]]:
    """160 sequences: two looks under one label, two under the other, all four pairs of them."""
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 40))
    return group, [directions(group % 2, 1), directions(group // 2, 2)]


def test_groups_that_only_all_labels_together_tell_apart_come_back(
    four_groups: tuple[Array, list[Array]],
) -> None:
    group, features = four_groups
    cotypicality = np.array([0.2, 0.9, -0.1, 0.5])[group]
    table = joint_clusters(sequence_rows(cotypicality), iter(features), 4)
    assert table.schema == JOINT_SCHEMA
    of_image = {row["image_id"]: row["cluster"] for row in table.to_pylist()}
    found = np.array([of_image[f"{i:032x}"] for i in range(len(group))])
    np.testing.assert_array_equal(found, np.array([2, 0, 3, 1])[group])  # by median, descending


def test_members_lie_by_distance_the_nearest_first(
    four_groups: tuple[Array, list[Array]],
) -> None:
    group, features = four_groups
    table = joint_clusters(sequence_rows(group.astype(float)), features, 4)
    points = joint_embedding(features).astype(float)
    rows = {row["image_id"]: row for row in table.to_pylist()}
    keys = [(row["cluster"], row["distance"]) for row in table.to_pylist()]
    assert keys == sorted(keys)
    for cluster in range(4):
        members = [i for i in range(len(group)) if rows[f"{i:032x}"]["cluster"] == cluster]
        away = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        first = next(row for row in table.to_pylist() if row["cluster"] == cluster)
        assert first["image_id"] == f"{members[int(away.argmin())]:032x}"
        assert first["distance"] == pytest.approx(away.min(), rel=1e-4)


def test_each_label_is_embedded_for_itself(four_groups: tuple[Array, list[Array]]) -> None:
    _, features = four_groups
    joint = joint_embedding(features)
    assert joint.shape == (160, 2 * DIMENSIONS)
    np.testing.assert_array_equal(joint[:, DIMENSIONS:], embedded(features[1]))


def test_the_same_features_give_the_same_embedding_with_any_number_of_threads(
    four_groups: tuple[Array, list[Array]],
) -> None:
    _, features = four_groups
    first = embedded(features[0])
    with threadpool_limits(2):
        np.testing.assert_array_equal(embedded(features[0]), first)
    np.random.seed(7)  # noqa: NPY002 - what others do to NumPy's own state does not matter
    np.testing.assert_array_equal(embedded(features[0]), first)


def test_neighbours_stay_near_in_fewer_dimensions(four_groups: tuple[Array, list[Array]]) -> None:
    group, features = four_groups
    points = embedded(features[0])
    same = group % 2 == 0
    within = np.linalg.norm(points[same] - points[same].mean(0), axis=1).max()
    assert np.linalg.norm(points[same].mean(0) - points[~same].mean(0)) > 2 * within


@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_few_sequences_are_embedded_by_principal_components(n: int) -> None:
    features = directions(np.arange(n) % 2, 3)
    points = embedded(features)
    np.testing.assert_array_equal(points, principal_components(features))
    assert points.shape == (n, min(n, DIMENSIONS))
    # Distances, all that k-means sees, are kept by as many directions as there are.
    between = np.linalg.norm(points[:, None] - points[None], axis=2)
    expected = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.testing.assert_allclose(between, expected, atol=0.06 if n > DIMENSIONS else 1e-5)
    table = joint_clusters(sequence_rows(np.arange(n)), [features, features], 32)
    assert table.num_rows == n


def test_one_sequence_more_is_enough_for_umap() -> None:
    features = directions(np.arange(34) % 2, 3)
    points = embedded(features)
    assert points.shape == (34, DIMENSIONS)
    assert np.isfinite(points).all()


def test_features_of_fewer_dimensions_keep_theirs() -> None:
    assert embedded(directions(np.arange(50) % 2, 3, d=6)).shape == (50, 6)


def test_nothing_to_cluster() -> None:
    assert joint_clusters(SEQUENCE_SCHEMA.empty_table(), [], 32).schema == JOINT_SCHEMA


def test_features_and_sequences_must_match() -> None:
    with pytest.raises(ValueError, match="3 features for 2 sequences"):
        joint_clusters(sequence_rows(np.ones(2)), [np.eye(3)], 1)
    with pytest.raises(ValueError, match=r"one n, not \[3, 2\]"):
        joint_embedding([np.eye(3), np.eye(2)])


def test_the_summary_has_a_row_for_each_cluster() -> None:
    group = np.repeat([0, 1], [12, 8])
    cotypicality = np.where(group == 0, 0.25, 0.5)
    cotypicality[0] = 100  # moves the mean, not the median
    table = joint_clusters(sequence_rows(cotypicality), [directions(group, 1)], 2)
    summary = joint_summary(table)
    assert summary.schema == JOINT_SUMMARY_SCHEMA
    assert summary.to_pylist() == [
        {"cluster": 0, "members": 8, "median_cotypicality": 0.5},
        {"cluster": 1, "members": 12, "median_cotypicality": 0.25},
    ]


def test_golden() -> None:
    """Other clusters under the same ALGO would mix with those stored: raise it with them."""
    i = np.arange(30)
    features = np.stack([np.sin(i * (j + 1)) for j in range(6)], axis=1).astype(np.float32)
    table = joint_clusters(sequence_rows(np.cos(i)), [features, features[:, ::-1]], 5)
    cluster = {row["image_id"]: row["cluster"] for row in table.to_pylist()}
    found = "".join(str(cluster[f"{place:032x}"]) for place in i)
    assert (ALGO, found) == ("joint-1", "102431102431111131110213110243")
