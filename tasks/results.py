"""The published units of one run that evaluation, signs and page are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.store.ledger import finished, read_json
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from tasks import typicality
from tasks.clusters import label_clusters
from tasks.index import Shard
from tasks.selection import selected

Map = npt.NDArray[np.float32]

RESULTS = "results.json"
"""In a report's unit: what it was made from."""


@dataclass(frozen=True)
class Results:
    """The published units that a page shows."""

    dataset: tuple[Shard, ...]
    images: int
    """How many were measured: the good ones of the dataset, less those set aside then."""
    size: int
    typicality: tuple[str, ...]
    selection: str
    clusters: tuple[tuple[str, str], ...]
    """(label, key)."""
    finetune: str | None
    compared: tuple[Shard, ...]
    """The shards also measured before finetuning, one for each key of `typicality_before`."""
    typicality_before: tuple[str, ...]
    selection_before: str | None

    @classmethod
    def from_json(cls, results: Mapping[str, Any]) -> Results:
        """Results as `dataclasses.asdict` and JSON left them."""
        return cls(
            **{
                **results,
                "dataset": tuple(map(Shard.from_json, results["dataset"])),
                "compared": tuple(map(Shard.from_json, results["compared"])),
                "clusters": tuple((label, key) for label, key in results["clusters"]),
                "typicality": tuple(results["typicality"]),
                "typicality_before": tuple(results["typicality_before"]),
            }
        )


def results_of(root: str, report_key: str) -> Results:
    """What a published report was made from."""
    opened = open_root(root)
    return Results.from_json(read_json(opened, finished(opened, "report", report_key), RESULTS))


def current_clusters(root: Root, results: Results) -> pa.Table:
    """The clusters of all labels; units may be older than the place where the images are now."""
    selection = selected(root, results.selection)
    uris = dict(zip(selection["image_id"].to_pylist(), selection["uri"].to_pylist(), strict=True))
    clusters = pa.concat_tables(label_clusters(root, key) for _, key in results.clusters)
    return clusters.set_column(
        clusters.schema.get_field_index("uri"),
        "uri",
        pa.array([uris[image_id] for image_id in clusters["image_id"].to_pylist()], pa.string()),
    )


def selected_pairs(tables: Iterable[pa.Table]) -> set[tuple[str, str]]:
    """(image_id, label) of every patch in `tables`."""
    return {
        pair
        for table in tables
        for pair in zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    }


def maps_of(
    root: Root, keys: Sequence[str], wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], Map]:
    """The maps of the wanted (image_id, label) pairs, read unit by unit."""
    found: dict[tuple[str, str], Map] = {}
    for key in keys:
        manifest = finished(root, typicality.STAGE, key)
        maps = read_maps(root, manifest)
        for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True)):
            if pair in wanted:
                found[pair] = maps.map(i).copy()
    return found
