"""The same patches clustered in several ways: how good each way is, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.clusters import kmeans
from diffmining_core.clusters.density import LEFT_OUT, density_clusters
from diffmining_core.clusters.kmeans import cluster_label, ranked
from diffmining_core.evaluation import cluster_quality
from diffmining_core.evaluation.cluster_quality import (
    MEMBERS,
    kind_quality,
    kinds_of,
    shape_quality,
)
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import label_patches
from diffmining_core.report.study_clusters import (
    KMEANS,
    MERGED,
    ClusterStudy,
    Quality,
    Way,
    clusters_page,
)
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks.evaluation import PLANTED, TruthReference
from tasks.features import feature_matrix, label_features
from tasks.progress import Progress
from tasks.report import store_study_page
from tasks.study import STAGE, TILES
from tasks.study_truth import planted_table
from tasks.units import Done, fill, stage_task

ALGO = "study-clusters-1"
ROWS = 5
"""Clusters shown of each way."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ClustersStudy:
    """What is studied: features of each label's patches by their keys, and the ways to cluster.

    shown: the ways whose clusters are shown. finer: how many times more groups are merged. Only of
    planted elements is it known what kind they are. size: pixels of the images' shorter side.
    """

    title: str
    truth: TruthReference | None
    features: tuple[tuple[str, str], ...]
    """(label, key)."""
    ways: tuple[Way, ...]
    shown: tuple[Way, ...]
    finer: int
    size: int
    facts: Mapping[str, Any]

    @property
    def kinds_known(self) -> bool:
        """Whether it is known what kind of element a patch shows."""
        return self.truth is not None and self.truth.kind == PLANTED

    @property
    def unit(self) -> Unit:
        """The unit of the study."""
        digest = self.truth.digest if self.truth and self.kinds_known else ""
        options = {
            "what": "clusters",
            "ways": [asdict(way) for way in self.ways],
            "shown": [asdict(way) for way in self.shown],
            "finer": self.finer,
            "facts": dict(self.facts),
        }
        algo = f"{ALGO} {kmeans.ALGO} {cluster_quality.ALGO}"
        return Unit(STAGE, algo, (digest, *(key for _, key in self.features)), options)


@stage_task(STAGE)
def study_clusters(root: str, study: ClustersStudy) -> Done:
    """Cluster the patches of each label in each way, measure, and publish the page."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        keys = dict(study.features)
        drawn = ClusterStudy(
            title=study.title,
            qualities=_qualities(opened, study),
            labels=list(keys),
            tiles=lambda label: _tiles(label_features(opened, keys[label]), label, study),
            facts=study.facts,
        )
        page = clusters_page(drawn)
        store_study_page(attempt, page)

    return fill(root, study.unit, produce)


def clustered(table: pa.Table, way: Way, finer: int) -> tuple[Array, Array]:
    """The cluster of each patch, ranked as in mining, LEFT_OUT for none; and the distances."""
    features = feature_matrix(table)
    typicality = table["typicality"].to_numpy()
    if way.method in (KMEANS, MERGED):
        times = finer if way.method == MERGED else 1
        return cluster_label(features, typicality, way.number, finer=times)
    groups = density_clusters(features, way.number)
    kept = np.flatnonzero(groups != LEFT_OUT)
    cluster = np.full(len(groups), LEFT_OUT, np.int32)
    distance = np.zeros(len(groups), np.float32)
    if len(kept):
        points = features[kept].astype(np.float64)
        cluster[kept], distance[kept] = ranked(points, typicality[kept], groups[kept])
    return cluster, distance


def _qualities(root: Root, study: ClustersStudy) -> list[Quality]:
    truth = planted_table(study.truth) if study.truth and study.kinds_known else None
    by_way: dict[Way, dict[str, dict[str, float]]] = {way: {} for way in study.ways}
    with Progress(STAGE, len(study.features), "labels") as progress:
        for label, key in study.features:
            table = label_features(root, key)
            kinds = None if truth is None else kinds_of(table, truth)
            for way in study.ways:
                cluster, _ = clustered(table, way, study.finer)
                measured = shape_quality(cluster, feature_matrix(table))
                if kinds is not None:
                    measured |= kind_quality(cluster, kinds)
                by_way[way][label] = measured
            progress.advance()
    return [Quality(way, by_label) for way, by_label in by_way.items()]


def _tiles(table: pa.Table, label: str, study: ClustersStudy) -> dict[str, list[Tile]]:
    """The members nearest to the means of each way's first clusters that are not too small.

    Where a way has fewer of them than are shown, there are rows without tiles.
    """
    rows: dict[str, list[Tile]] = {}
    for way in study.shown:
        cluster, distance = clustered(table, way, study.finer)
        numbers, sizes = np.unique(cluster[cluster != LEFT_OUT], return_counts=True)
        shown = numbers[sizes >= MEMBERS]
        for rank in range(ROWS):
            members = np.flatnonzero(np.isin(cluster, shown[rank : rank + 1]))
            nearest = members[np.argsort(distance[members], kind="stable")][:TILES]
            patches = label_patches(table.take(nearest), label, "highest")
            rows[f"{way.method} {rank + 1}"] = [
                crop(load_pixels(patch.uri, study.size), patch) for patch in patches
            ]
    return rows
