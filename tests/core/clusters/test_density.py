from __future__ import annotations

import numpy as np
import pytest

from diffmining_core.clusters.density import LEFT_OUT, density_clusters


def test_dense_regions_are_found_and_what_lies_between_is_left_out() -> None:
    rng = np.random.default_rng(0)
    dense = [centre + rng.normal(0, 0.02, (20, 3)) for centre in np.eye(3)]
    lone = np.array([[5.0, 5, 5], [-4, 3, -2]])
    cluster = density_clusters(np.concatenate([*dense, lone]), 6)
    assert cluster.dtype == np.int32
    assert [len(set(cluster[start : start + 20].tolist())) for start in (0, 20, 40)] == [1, 1, 1]
    assert len(set(cluster[:60].tolist())) == 3
    assert cluster[60:].tolist() == [LEFT_OUT, LEFT_OUT]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_fewer_patches_than_a_cluster_needs_are_all_left_out(n: int) -> None:
    assert density_clusters(np.zeros((n, 4)), 6).tolist() == [LEFT_OUT] * n
