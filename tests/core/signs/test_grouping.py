from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffmining_core.clusters.kmeans import cluster_label
from diffmining_core.signs.grouping import Grouping, grouping, grouping_signs

DIMENSIONS = 64


def groups(count: int, n: int = 160, spread: float = 0.1) -> NDArray[np.float32]:
    """n unit vectors around `count` directions."""
    rng = np.random.default_rng(count)
    centres = rng.standard_normal((count, DIMENSIONS))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    points = centres[np.arange(n) % count] + spread * rng.standard_normal((n, DIMENSIONS)) / 2
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)


def clustered(features: NDArray[np.float32], k: int) -> Grouping:
    ranks, _ = cluster_label(features, np.arange(len(features), dtype=np.float32), k)
    return grouping(features, ranks)


def names(found: Grouping) -> list[str]:
    return [sign.name for sign, _ in grouping_signs("barn", found)]


def test_clusters_that_are_groups_raise_nothing() -> None:
    found = clustered(groups(8), 8)
    assert found.tightness < 0.7
    assert names(found) == []


def test_a_cloud_without_groups_is_mixed() -> None:
    cloud = np.random.default_rng(0).standard_normal((160, DIMENSIONS)).astype(np.float32)
    found = clustered(cloud, 8)
    assert found.tightness == pytest.approx(1, abs=0.05)
    assert "mixed" in names(found)


def test_a_group_cut_in_two_is_there_twice() -> None:
    features = groups(4, n=200)
    ranks = np.arange(200) % 4
    cut = np.where((ranks == 3) & (np.arange(200) % 8 >= 4), 4, ranks)
    found = grouping(features, cut)
    assert found.same() == [(3, 4)]
    ((sign, shown),) = [pair for pair in grouping_signs("barn", found) if pair[0].severity]
    assert (sign.name, shown) == ("duplicate", [3, 4])
    assert "clusters 4 and 5" in sign.evidence


def test_a_cluster_of_leftovers_is_mixed() -> None:
    features = groups(6, n=180)
    ranks = np.arange(180) % 6
    rng = np.random.default_rng(1)
    ranks[rng.choice(180, 36, replace=False)] = 6
    found = grouping(features, ranks)
    assert found.loose() == [6]
    signs = {sign.name: (sign, shown) for sign, shown in grouping_signs("barn", found)}
    assert "cluster 7" in signs["mixed"][0].evidence
    assert signs["mixed"][1] == [6]


def test_spread_is_that_of_plain_loops() -> None:
    features, ranks = groups(3, n=60), np.arange(60) % 3
    found = grouping(features, ranks)
    for rank in range(3):
        own = features[ranks == rank].astype(float)
        expected = np.sqrt(((own - own.mean(0)) ** 2).sum(1).mean())
        assert found.spread[rank] == pytest.approx(expected, rel=1e-6)
    whole = np.sqrt(((features - features.mean(0)).astype(float) ** 2).sum(1).mean())
    assert found.label_spread == pytest.approx(whole, rel=1e-5)


def test_of_few_patches_one_cluster_or_the_same_features_nothing_is_said() -> None:
    assert names(clustered(groups(3, n=30), 3)) == []
    assert names(clustered(groups(3), 1)) == []
    assert names(clustered(np.ones((60, DIMENSIONS), np.float32), 4)) == []
