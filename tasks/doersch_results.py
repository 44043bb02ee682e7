"""What Doersch's stages leave at a root, read and written: cells, detectors and matches."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.baselines.doersch import Window, with_label
from diffmining_core.baselines.matching import COLUMN, IMAGE, ROW, SHARD, Detectors, Matches
from diffmining_core.baselines.windows import (
    CHANNELS,
    DIMENSIONS,
    Cells,
    descriptors_at,
    window_corner,
)
from diffmining_core.store.ledger import Attempt, Manifest, finished, read_bytes, read_table
from diffmining_core.store.roots import Root

CELLS_STAGE = "doersch_cells"
DETECTORS_STAGE = "doersch_detectors"
MATCHES_STAGE = "doersch_matches"

IMAGES, CELLS = "images.parquet", "cells.npy"
DETECTORS, WEIGHTS = "detectors.parquet", "weights.npy"
SCORES, PLACES = "scores.npy", "places.npy"

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("height", pa.int32()),  # of the model-size image
        ("width", pa.int32()),
        ("rows", pa.int32()),  # of cells
        ("columns", pa.int32()),
    ]
)
DETECTORS_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("offset", pa.float32()),
        # The window that it began as.
        ("shard", pa.int32()),
        ("image", pa.int32()),
        # Windows without the label that earlier rounds took for one, four numbers each.
        ("taken", pa.list_(pa.int32())),
    ]
)


class Shards:
    """The images of several shards, by number; one shard's cells in memory at a time."""

    def __init__(self, root: Root, cells_keys: Sequence[str]) -> None:
        self.manifests = [finished(root, CELLS_STAGE, key) for key in cells_keys]
        self.cells = lru_cache(maxsize=1)(lambda number: read_cells(root, cells_keys[number]))
        self._images = lru_cache(maxsize=64)(
            lambda number: _images(root, self.manifests[number]).to_pylist()
        )
        numbers = range(len(cells_keys))
        self.labels = sorted(
            {label for number in numbers for row in self.images(number) for label in row["labels"]}
        )
        self.flags = [self._flags(number) for number in numbers]
        """Of each shard, which image has which of `labels`: [images, labels]."""

    def parameter(self, name: str) -> int:
        """What the cells were made with."""
        return int(self.manifests[0].parameters[name])

    def images(self, number: int) -> list[dict[str, Any]]:
        """The rows of a shard's images (IMAGES_SCHEMA)."""
        rows: list[dict[str, Any]] = self._images(number)
        return rows

    def corner(self, place: npt.NDArray[np.int32]) -> dict[str, Any]:
        """image_id, y and x of a window."""
        image = self.images(int(place[SHARD]))[place[IMAGE]]
        at = int(place[ROW]), int(place[COLUMN])
        hw = image["height"], image["width"]
        y, x = window_corner(at, self.parameter("patch_size"), hw)
        return {"image_id": image["image_id"], "y": y, "x": x}

    def descriptors(self, windows: Sequence[Window]) -> npt.NDArray[np.float16]:
        """The descriptors [n, d] of some windows, looked up shard by shard."""
        of_image: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, window in enumerate(windows):
            of_image[window[SHARD], window[IMAGE]].append(number)
        described = np.empty((len(windows), DIMENSIONS), np.half)
        for (shard, image), mine in sorted(of_image.items()):
            places = [(windows[number][ROW], windows[number][COLUMN]) for number in mine]
            described[mine] = descriptors_at(self.cells(shard)[image], places)
        return described

    def _flags(self, number: int) -> npt.NDArray[np.bool_]:
        rows = [[label in row["labels"] for label in self.labels] for row in self.images(number)]
        return np.array(rows, bool).reshape(-1, len(self.labels))


def _images(root: Root, manifest: Manifest) -> pa.Table:
    return read_table(root, manifest, IMAGES)


def read_cells(root: Root, key: str) -> list[Cells]:
    """The cells of each image of a shard."""
    manifest = finished(root, CELLS_STAGE, key)
    table = _images(root, manifest)
    flat = npy_array(read_bytes(root, manifest, CELLS))
    shapes = list(zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True))
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    parts = np.split(flat, ends[:-1]) if shapes else []
    return [part.reshape(*shape, CHANNELS) for part, shape in zip(parts, shapes, strict=True)]


def read_detectors(root: Root, key: str) -> tuple[pa.Table, Detectors]:
    """Published detectors: their table (DETECTORS_SCHEMA) and weights."""
    manifest = finished(root, DETECTORS_STAGE, key)
    table = read_table(root, manifest, DETECTORS)
    weights = npy_array(read_bytes(root, manifest, WEIGHTS)).astype(np.float32)
    return table, Detectors(weights, table["offset"].to_numpy())


def write_detectors(attempt: Attempt, rows: list[dict[str, Any]], weights: Any) -> None:
    """Publish detectors: rows of DETECTORS_SCHEMA and their weights."""
    attempt.write_table(DETECTORS, pa.Table.from_pylist(rows, schema=DETECTORS_SCHEMA))
    attempt.write_bytes(WEIGHTS, npy_bytes(weights))
    attempt.counts["detectors"] = len(rows)


def detector_row(
    label: str, offset: float, shard: int, image: int, taken: list[int]
) -> dict[str, Any]:
    """A row of DETECTORS_SCHEMA."""
    return {"label": label, "offset": offset, "shard": shard, "image": image, "taken": taken}


def write_matches(attempt: Attempt, found: Matches) -> None:
    """Publish the matches of one shard."""
    attempt.write_bytes(SCORES, npy_bytes(found.scores))
    attempt.write_bytes(PLACES, npy_bytes(found.places))
    attempt.counts["detectors"] = len(found.scores)


def all_matches(root: Root, matches_keys: Sequence[str], detectors: int, count: int) -> Matches:
    """The best `count` matches of each detector over all shards."""
    best = Matches.none(detectors)
    for number, key in enumerate(matches_keys):
        manifest = finished(root, MATCHES_STAGE, key)
        scores, places = (npy_array(read_bytes(root, manifest, name)) for name in (SCORES, PLACES))
        best = best.merge(Matches(scores, places).of_shard(number), count)
    return best


def right_matches(found: Matches, shards: Shards, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which matches [n, k] have their detector's own label."""
    column = np.array([shards.labels.index(label) for label in labels], np.intp)
    return with_label(found, shards.flags, column)


def by_label(labels: npt.NDArray[Any]) -> list[npt.NDArray[np.intp]]:
    """The rows of each label, in the order of the labels."""
    return [np.flatnonzero(labels == label) for label in sorted(set(labels))]


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_array(data: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file's bytes."""
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array
