"""Pictures of what is typical, for the Prefect UI: while maps are still made, and in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.clusters.kmeans import cluster_summary
from diffmining_core.errors import InputError
from diffmining_core.images.pixels import load_pixels
from diffmining_core.patches.scoring import HIGHEST
from diffmining_core.patches.selection import TopPatches
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import SMALL_CLUSTER, Patch
from diffmining_core.report.typical import (
    PATCHES_PER_LABEL,
    TypicalLabel,
    pictured_labels,
    typical_table,
)
from diffmining_core.results.references import Shard, results_of
from diffmining_core.store.roots import open_root
from tasks.index import dataset_counts
from tasks.patches import patches_unit, shard_unit
from tasks.results import current_clusters
from tasks.selection import Share, merged
from tasks.units import Done


class TypicalSoFar:
    """The highest patches of a few labels, in the maps that have been added.

    shards: those of the dataset, by the keys of their maps; those without these labels are left
    out. options: of the patches. size: of the images. No more is held than a few patches per label.
    """

    def __init__(
        self, root: str, shards: Mapping[str, Shard], options: Mapping[str, Any], size: int
    ) -> None:
        self.root, self.options, self.size = root, dict(options), size
        self.counts = dataset_counts(list(shards.values()))
        self.labels = pictured_labels(self.counts)
        self.shards = {
            key: shard
            for key, shard in shards.items()
            if not {label for label, _ in shard.labels}.isdisjoint(self.labels)
        }
        self.groups = frozenset((label, HIGHEST) for label in self.labels)
        self.best = TopPatches.empty(PATCHES_PER_LABEL, self.options["seed"])
        self.tiles: dict[Patch, Tile | None] = {}
        self.added = 0
        self.made: list[Done] = []
        """The patches of the shards that were added: units that mining needs anyway."""

    def add(self, typicality_key: str) -> None:
        """Pick the patches of one shard's published maps, unless that is done, and look at them."""
        self.made.append(shard_unit(open_root(self.root).url, self.options, typicality_key))
        key = patches_unit(typicality_key, self.options).key
        share = Share(self.shards[typicality_key], key, self.groups)
        seed = self.options["seed"]
        self.best = self.best.merge(merged(self.root, PATCHES_PER_LABEL, seed, [share])).settled()
        self.added += 1

    def markdown(self) -> str:
        """What has been found, with its pictures."""
        said = (
            f"The highest patches in {self.added:,} of {len(self.shards):,} shards, with the "
            "typicality of each."
        )
        rows = self.best.table()
        patches = {label: _patches(_of_label(rows, label)) for label in self.labels}
        kept = {patch for of_label in patches.values() for patch in of_label}
        self.tiles = {
            patch: self.tiles[patch] if patch in self.tiles else _tile(patch, self.size)
            for patch in kept
        }
        shown = [
            _typical_label(label, self.counts[label], of_label, self.tiles)
            for label, of_label in patches.items()
        ]
        return _with_table(said, shown, len(self.counts), "highest so far")


def typical_in_the_end(root: str, report_key: str) -> str:
    """One patch of each of the best clusters of a few labels, of a published report."""
    results = results_of(open_root(root), report_key)
    counts = dataset_counts(results.dataset)
    labels = [label for label in pictured_labels(counts) if label in dict(results.clusters)]
    of_labels = tuple((label, dict(results.clusters)[label]) for label in labels)
    clusters = current_clusters(open_root(root), replace(results, clusters=of_labels))
    shown = []
    for label in labels:
        rows = _best_of_clusters(clusters.filter(pc.equal(clusters["label"], label)))
        patches = _patches(rows)
        tiles = {patch: _tile(patch, results.size) for patch in patches}
        shown.append(_typical_label(label, counts[label], patches, tiles))
    said = "The most central patch of each of the best clusters, with its typicality."
    return _with_table(said, shown, len(counts), "best clusters")


def _best_of_clusters(clusters: pa.Table) -> pa.Table:
    """The most central patch of each of a label's best clusters; small ones come last."""
    summary = cluster_summary(clusters).to_pylist()
    ranked = sorted(summary, key=lambda row: (row["members"] < SMALL_CLUSTER, row["cluster"]))
    central = clusters.sort_by([("distance", "ascending"), ("label_rank", "ascending")])
    return pa.concat_tables(
        central.filter(pc.equal(central["cluster"], row["cluster"])).slice(0, 1)
        for row in ranked[:PATCHES_PER_LABEL]
    )


def _of_label(selection: pa.Table, label: str) -> pa.Table:
    return selection.filter(pc.equal(selection["label"], label)).sort_by("label_rank")


def _patches(rows: pa.Table) -> list[Patch]:
    columns = ["image_id", "uri", "y", "x", "size", "typicality"]
    return [Patch(**row) for row in rows.select(columns).to_pylist()]


def _tile(patch: Patch, size: int) -> Tile | None:
    """The patch's pixels, None where its image is not there any more, or is another."""
    try:
        return crop(load_pixels(patch.uri, size), patch).copy()
    except (InputError, OSError):
        return None


def _typical_label(
    label: str, images: int, patches: Sequence[Patch], tiles: Mapping[Patch, Tile | None]
) -> TypicalLabel:
    seen = [(tile, patch.typicality) for patch in patches if (tile := tiles[patch]) is not None]
    return TypicalLabel(label, images, [tile for tile, _ in seen], [value for _, value in seen])


def _with_table(said: str, shown: Sequence[TypicalLabel], labels: int, heading: str) -> str:
    with_pictures = [label for label in shown if label.tiles]
    if not with_pictures:
        return said
    if labels > len(shown):
        said = f"{said} Of {labels:,} labels, those with the most images."
    return f"{said}\n\n{typical_table(with_pictures, heading)}"
