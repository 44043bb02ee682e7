from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from diffmining_core.clusters.density import LEFT_OUT
from diffmining_core.evaluation.cluster_quality import (
    ALGO,
    NOTHING,
    kind_quality,
    kinds_of,
    shape_quality,
)


def test_mixed_and_duplicate_clusters_are_told_from_those_of_their_own_kind() -> None:
    kinds = ["roof"] * 8 + ["roof"] * 6 + ["lamp", "plate"] * 5 + ["lamp"] * 7 + [NOTHING] * 6
    sizes = [8, 6, 10, 7, 6]
    cluster = np.repeat(np.arange(5), sizes)
    quality = kind_quality(cluster, kinds)
    assert quality["mixed"] == pytest.approx(1 / 5)
    assert quality["duplicate"] == pytest.approx(1 / 5)
    assert quality["found"] == 2  # roof and lamp; nothing is no element
    assert quality["purity"] == pytest.approx((8 + 6 + 5 + 7 + 6) / 37)
    assert 0 < quality["v_measure"] < 1


def test_a_kind_with_each_cluster_is_as_good_as_it_gets() -> None:
    kinds = ["roof"] * 7 + ["lamp"] * 9
    cluster = np.repeat([1, 0], [7, 9])
    assert kind_quality(cluster, kinds) == {
        "mixed": 0,
        "duplicate": 0,
        "found": 2,
        "purity": 1,
        "v_measure": pytest.approx(1),
    }


def test_clusters_too_small_to_show_and_patches_in_none_do_not_count_as_found() -> None:
    kinds = ["roof"] * 7 + ["lamp"] * 5 + ["plate"] * 6
    cluster = np.repeat([0, 1, LEFT_OUT], [7, 5, 6])
    quality = kind_quality(cluster, kinds)
    assert quality["found"] == 1
    assert (quality["mixed"], quality["duplicate"], quality["purity"]) == (0, 0, 1)
    together = kind_quality(np.repeat([0, 1, 2], [7, 5, 6]), kinds)
    assert quality["v_measure"] < together["v_measure"]


def test_no_cluster_at_all_is_nothing_found() -> None:
    nothing = np.full(4, LEFT_OUT)
    quality = kind_quality(nothing, ["roof"] * 4)
    assert (quality["found"], quality["purity"], quality["mixed"]) == (0, 0, 0)
    assert shape_quality(nothing, np.eye(4)) == {
        "clusters": 0,
        "left_out": 1,
        "close": 0,
        "silhouette": 0,
    }


def test_clusters_that_lie_within_one_another_are_close() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 0.1, (2, 20, 3))
    features = np.concatenate([one, other + 0.01, one + np.array([5, 0, 0])])
    cluster = np.repeat([0, 1, 2], 20)
    quality = shape_quality(cluster, features)
    assert quality["clusters"] == 3
    assert quality["close"] == pytest.approx(2 / 3)
    apart = shape_quality(cluster, features + 9 * np.repeat(np.eye(3), 20, axis=0))
    assert apart["close"] == 0
    assert apart["silhouette"] > 0.9 > quality["silhouette"]


def test_the_kind_of_a_patch_is_the_planted_element_that_it_shows() -> None:
    box = {"typical_of": None, "y0": 10, "x0": 10, "y1": 20, "x1": 20}
    truth = pa.Table.from_pylist([{"file": "a/1.png", "label": "a", "element": "roof", **box}])
    place = {"uri": "/data/a/1.png", "size": 10}
    patches = pa.Table.from_pylist([{**place, "y": 12, "x": 11}, {**place, "y": 30, "x": 10}])
    assert kinds_of(patches, truth) == ["roof", NOTHING]


def test_golden() -> None:
    """Another number here wants another ALGO: stored studies would else pass for these."""
    cluster = np.repeat([0, 1, 2, LEFT_OUT], [9, 8, 7, 3])
    kinds = ["a"] * 10 + ["b"] * 6 + ["c"] * 11
    assert ALGO == "cluster-quality-1"
    assert kind_quality(cluster, kinds)["v_measure"] == pytest.approx(0.67707, abs=1e-5)
