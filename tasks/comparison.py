"""Typicality and baselines against one known answer: what each finds, what it takes, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.evaluation.planted import PixelScores, cluster_purity
from diffmining_core.report.comparison import Comparison, Growth, MethodNumbers, comparison_page
from diffmining_core.report.study_page import NUMBERS
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_json, read_manifests
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import doersch, study_truth
from tasks.clusters import label_clusters
from tasks.evaluation import PLANTED, TruthReference
from tasks.index import good_images
from tasks.report import store_study_page
from tasks.selection import selected
from tasks.study_sides import highest_tiles
from tasks.study_truth import Measure, measure_of, planted_table
from tasks.units import Done, fill, stage_task

STAGE = "comparison"
ALGO = "comparison-1"
BEST = 5
"""Clusters of each label whose purity is measured."""

UnitName = tuple[str, str]
"""Stage and key."""


@dataclass(frozen=True)
class Part:
    """What one way found on the first `shards` shards, and the units that this took."""

    shards: int
    selection: str
    units: tuple[UnitName, ...]


@dataclass(frozen=True)
class Method:
    """One way of mining.

    parts: of the dataset, ascending, the last all of it. maps: the stage and the keys of its maps,
    one for each shard, None if it has none. clusters: of each label, by their keys; elements: in
    their place, the key of Doersch's. training, clustering: the units that these took.
    """

    name: str
    parts: tuple[Part, ...]
    training: tuple[UnitName, ...] = ()
    maps: tuple[str, tuple[str, ...]] | None = None
    clusters: tuple[str, ...] = ()
    clustering: tuple[UnitName, ...] = ()
    elements: str | None = None


@dataclass(frozen=True)
class Compared:
    """What is compared, on which shards, against what is known of them.

    size, cell, patch_size: pixels of the images' shorter side, of a place of a map, of a patch.
    """

    title: str
    truth: TruthReference | None
    dataset: tuple[Shard, ...]
    methods: tuple[Method, ...]
    size: int
    cell: int
    patch_size: int
    facts: Mapping[str, Any]

    @property
    def unit(self) -> Unit:
        """The unit of the comparison."""
        found = [
            key
            for method in self.methods
            for key in (
                *(part.selection for part in method.parts),
                *(method.maps[1] if method.maps else ()),
                *method.clusters,
                method.elements or "",
            )
        ]
        inputs = (self.truth.digest if self.truth else "", *found)
        options = {
            "methods": [[method.name, len(method.parts)] for method in self.methods],
            "facts": dict(self.facts),
        }
        return Unit(STAGE, f"{ALGO} {study_truth.ALGO}", inputs, options)


@stage_task(STAGE)
def comparison(root: str, compared: Compared) -> Done:
    """Measure what each way found and what it took, and publish the page."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        measuring = _Measuring(opened, compared)
        selections = {
            method.name: selected(opened, method.parts[-1].selection) for method in compared.methods
        }
        drawn = Comparison(
            title=compared.title,
            methods=[measuring.numbers(method) for method in compared.methods],
            base_rate=measuring.base_rate,
            labels=sorted({label for shard in compared.dataset for label, _ in shard.labels}),
            tiles=lambda label: highest_tiles(selections, label, compared.size),
            facts=compared.facts,
        )
        page = comparison_page(drawn)
        store_study_page(attempt, page)

    return fill(root, compared.unit, produce)


def compared_numbers(root: str, key: str) -> dict[str, Any]:
    """The numbers of a published comparison, and how it was made."""
    opened = open_root(root)
    numbers: dict[str, Any] = read_json(opened, finished(opened, STAGE, key), NUMBERS)
    return numbers


class _Measuring:
    """Holds each way against what is known."""

    def __init__(self, root: Root, compared: Compared) -> None:
        self.root = root
        self.compared = compared
        self.measure: Measure | None = None
        self.planted: pa.Table | None = None
        self.base_rate: float | None = None
        if truth := compared.truth:
            self.measure = measure_of(root, compared.dataset, truth, compared.size, compared.cell)
            self.planted = planted_table(truth) if truth.kind == PLANTED else None

    def numbers(self, method: Method) -> MethodNumbers:
        """What one way came to."""
        growth = [
            Growth(
                images=sum(shard.images for shard in self.compared.dataset[: part.shards]),
                seconds=self._seconds(part.units),
                hits=self._hits(part.selection),
            )
            for part in method.parts
        ]
        return MethodNumbers(
            name=method.name,
            hits=growth[-1].hits,
            average_precision=self._average_precision(*method.maps) if method.maps else None,
            purity=self._purity(method),
            training_seconds=self._seconds(method.training),
            growth=growth,
            clustering_seconds=self._seconds(method.clustering),
        )

    def _seconds(self, units: Sequence[UnitName]) -> float:
        stages = {stage for stage, _ in units}
        return sum(
            manifest.seconds
            for name in stages
            for manifest in read_manifests(
                self.root, name, dict.fromkeys(key for stage, key in units if stage == name)
            )
        )

    def _hits(self, selection: str) -> float | None:
        if self.measure is None:
            return None
        table = selected(self.root, selection)
        highest = table.filter(pc.equal(table["kind"], "highest"))
        return self.measure.hits(highest).get("highest")

    def _average_precision(self, stage: str, keys: Sequence[str]) -> float | None:
        if self.measure is None:
            return None
        whole = PixelScores.empty()
        for shard, key in zip(self.compared.dataset, keys, strict=True):
            images = good_images(self.root, shard)
            uris = {(image.image_id, image.label): image.uri for image in images}
            maps = read_maps(self.root, finished(self.root, stage, key))
            for of_label in self.measure.pixels(maps, uris).values():
                whole = whole.merge(of_label)
        self.base_rate = whole.base_rate
        return whole.average_precision if whole.base_rate else None

    def _purity(self, method: Method) -> dict[str, list[float]] | None:
        if self.planted is None:
            return None
        if method.elements:
            clusters = self._element_clusters(method.elements)
        else:
            clusters = pa.concat_tables(label_clusters(self.root, key) for key in method.clusters)
        return cluster_purity(clusters, self.planted, BEST)

    def _element_clusters(self, key: str) -> pa.Table:
        """The windows of each label's best elements as clusters of patches."""
        table = doersch.elements(self.root, key)
        best = table.filter(pc.less(table["element"], BEST))
        wanted = set(best["image_id"].to_pylist())
        uris = {
            image.image_id: image.uri
            for shard in self.compared.dataset
            for image in good_images(self.root, shard)
            if image.image_id in wanted
        }
        columns = {name: best[name] for name in ("label", "y", "x")}
        return pa.table(
            {
                **columns,
                "cluster": best["element"],
                "uri": [uris[image_id] for image_id in best["image_id"].to_pylist()],
                "size": [self.compared.patch_size] * best.num_rows,
            }
        )
