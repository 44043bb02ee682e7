"""Clusters as dense regions of feature space (HDBSCAN, Campello et al. 2013), for the studies.

Where nothing is dense, patches belong to no cluster; how many clusters there are is found out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LEFT_OUT = -1
"""In place of a cluster's number: the patch is in none."""


def density_clusters(
    features: npt.NDArray[np.floating[Any]], min_members: int
) -> npt.NDArray[np.int32]:
    """The cluster of each of the features [n, d] in no order, LEFT_OUT for those in none.

    No cluster has fewer than `min_members`.
    """
    from sklearn.cluster import HDBSCAN  # takes seconds, for which only clustering has to wait

    if len(features) < max(min_members, 2):
        return np.full(len(features), LEFT_OUT, np.int32)
    density = HDBSCAN(min_cluster_size=min_members, copy=True)
    return np.asarray(density.fit_predict(features.astype(np.float64)), np.int32)
