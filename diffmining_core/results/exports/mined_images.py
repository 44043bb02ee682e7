"""The images that have chosen patches, one after the other, each with its patches and clusters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diffmining_core.images.shards import good
from diffmining_core.results.maps import Map
from diffmining_core.results.opened import MinedResults
from diffmining_core.results.references import SHARD_TABLE, TYPICALITY, Shard
from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.maps import read_maps

PLACE = ("label", "kind", "image_id", "y", "x")


@dataclass(frozen=True)
class MinedImage:
    """An image with its patches, which are rows of `clustered_patches`.

    width, height: of the upright original. labels: those under which it was mined. maps: its
    typicality maps by label, where they were asked for.
    """

    image_id: str
    uri: str
    width: int
    height: int
    labels: tuple[str, ...]
    patches: list[dict[str, Any]]
    maps: dict[str, Map]


class MinedImages:
    """The images that have chosen patches, in the order of the dataset's shards.

    with_maps: their typicality maps too, which are read unit by unit.
    """

    def __init__(self, results: MinedResults, *, with_maps: bool = False) -> None:
        self._results = results
        self._with_maps = with_maps
        self.patches = clustered_patches(results)
        ids = self.patches["image_id"].combine_chunks().dictionary_encode()
        self._order = np.argsort(ids.indices.to_numpy(), kind="stable")
        ends = np.cumsum(np.bincount(ids.indices.to_numpy(), minlength=len(ids.dictionary)))
        starts = [0, *ends[:-1].tolist()]
        self._rows = dict(
            zip(ids.dictionary.to_pylist(), zip(starts, ends.tolist(), strict=False), strict=True)
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[MinedImage]:
        seen: set[str] = set()
        made_from = self._results.made_from
        for shard, key in zip(made_from.dataset, made_from.typicality, strict=True):
            rows_of = self._rows_of(shard)
            maps = self._maps_of(key, rows_of) if self._with_maps else {}
            for image_id, rows in rows_of.items():
                if image_id in seen:
                    continue
                seen.add(image_id)
                patches = self._patches_of(image_id)
                yield MinedImage(
                    image_id=image_id,
                    uri=patches[0]["uri"],
                    width=rows[0]["width"],
                    height=rows[0]["height"],
                    labels=tuple(dict.fromkeys(row["label"] for row in rows)),
                    patches=patches,
                    maps=maps.get(image_id, {}),
                )

    def _rows_of(self, shard: Shard) -> dict[str, list[dict[str, Any]]]:
        """The rows of the shard's images that have patches, by image."""
        root = self._results.root
        table = read_table(root, finished(root, shard.stage, shard.key), SHARD_TABLE)
        kept = np.ones(table.num_rows, bool)
        kept[list(shard.dropped)] = False
        rows: dict[str, list[dict[str, Any]]] = {}
        columns = ["image_id", "label", "width", "height"]
        for row in good(table.filter(pa.array(kept))).select(columns).to_pylist():
            if row["image_id"] in self._rows:
                rows.setdefault(row["image_id"], []).append(row)
        return rows

    def _maps_of(self, key: str, wanted: Collection[str]) -> dict[str, dict[str, Map]]:
        """The maps of the wanted images of a unit, by image and label."""
        root = self._results.root
        unit = read_maps(root, finished(root, TYPICALITY, key))
        maps: dict[str, dict[str, Map]] = {}
        for i, (image_id, label) in enumerate(zip(unit.image_id, unit.label, strict=True)):
            if image_id in wanted:
                maps.setdefault(image_id, {})[label] = unit.map(i)
        return maps

    def _patches_of(self, image_id: str) -> list[dict[str, Any]]:
        start, end = self._rows[image_id]
        rows: list[dict[str, Any]] = self.patches.take(self._order[start:end]).to_pylist()
        return rows


def clustered_patches(results: MinedResults) -> pa.Table:
    """The patches of all labels; those in a cluster with its number and their distance to it."""
    clusters = results.clusters().select([*PLACE, "cluster", "distance"])
    joined = results.patches().join(clusters, list(PLACE), join_type="left outer")
    order = [(name, "ascending") for name in ("label", "kind", "label_rank")]
    return joined.sort_by(order).combine_chunks()
