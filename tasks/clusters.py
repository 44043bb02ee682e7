"""k-means clusters of one label's patches, ranked by median typicality."""

from __future__ import annotations

import pyarrow as pa

from diffmining_core.clusters.kmeans import ALGO, adapted_k, cluster_selection
from diffmining_core.results.references import CLUSTERS
from diffmining_core.store.ledger import Attempt, finished, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks.features import feature_matrix, label_features
from tasks.units import Done, fill, stage_task

STAGE = CLUSTERS
TABLE = "clusters.parquet"


def clusters_unit(features_key: str, k: int, finer: int = 1) -> Unit:
    """The unit of one label's features."""
    options = {"k": k} if finer == 1 else {"k": k, "finer": finer}
    return Unit(STAGE, ALGO, (features_key,), options)


@stage_task(STAGE, "clusters {label}")
def clusters(root: str, label: str, features_key: str, k: int, finer: int = 1) -> Done:
    """Cluster the patches of one label; k is lowered where patches are few."""

    def produce(attempt: Attempt) -> None:
        table = label_features(open_root(root), features_key)
        selection, features = table.drop_columns(["feature"]), feature_matrix(table)
        clustered = cluster_selection(selection, features, k, finer=finer)
        attempt.write_table(TABLE, clustered)
        attempt.counts["patches"] = len(table)
        attempt.facts["label"] = label
        attempt.facts["k"] = adapted_k(len(table), k)

    return fill(root, clusters_unit(features_key, k, finer), produce)


def label_clusters(root: Root, key: str) -> pa.Table:
    """The table of a published clusters unit; its uris are those of when it was made."""
    manifest = finished(root, STAGE, key)
    return read_table(root, manifest, TABLE)


def lowered_k(root: str, key: str, k: int) -> str | None:
    """A sentence if a label was given fewer than `k` clusters."""
    manifest = finished(open_root(root), STAGE, key)
    if manifest.facts["k"] == k:
        return None
    return (
        f"{manifest.facts['label']}: {manifest.facts['k']} clusters in place of {k}, because it "
        f"has only {manifest.counts['patches']} patches."
    )
