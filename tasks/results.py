"""The published units of one run that evaluation, signs and page are made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.results.references import Results
from diffmining_core.store.ledger import finished
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root
from tasks import typicality
from tasks.clusters import label_clusters
from tasks.selection import selected

Map = npt.NDArray[np.float32]


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
