"""Whole images by their mean typicality: which are most and least typical of their label.

In: tables of image_id, label, uri and typicality, one a dataset shard. Out: the same as one Parquet
file, and of each label all values (4 bytes an image) and its few highest and lowest images.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_TABLE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("uri", pa.string()),
        ("typicality", pa.float32()),  # mean of the image's map
    ]
)

KEPT = 6
"""Images kept at either end of a label."""

Ranked = tuple[float, str, str]
"""typicality, image_id, uri."""


@dataclass
class LabelImages:
    """The images of one label.

    highest, lowest: the first KEPT from either end; of equal typicality the lowest id comes first.
    """

    parts: list[npt.NDArray[np.float32]] = field(default_factory=list)
    highest: list[Ranked] = field(default_factory=list)
    lowest: list[Ranked] = field(default_factory=list)

    @property
    def typicality(self) -> npt.NDArray[np.float32]:
        """Of every image, float32 [n], in no order."""
        return np.concatenate([np.empty(0, np.float32), *self.parts])

    def add(self, images: Sequence[Ranked]) -> None:
        """Take more images in."""
        self.parts.append(np.array([value for value, _, _ in images], np.float32))
        self.highest = heapq.nsmallest(
            KEPT, [*self.highest, *images], key=lambda image: (-image[0], *image[1:])
        )
        self.lowest = heapq.nsmallest(KEPT, [*self.lowest, *images])


@dataclass(frozen=True)
class ImageRanking:
    """The images of each label, and where the table of all of them lies."""

    of_label: dict[str, LabelImages]
    table: Path


def rank_images(tables: Iterable[pa.Table], path: Path) -> ImageRanking:
    """Write the tables (IMAGE_TABLE_SCHEMA) to `path` as one, and rank the images of each label."""
    of_label: dict[str, LabelImages] = {}
    with pq.ParquetWriter(path, IMAGE_TABLE_SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.select(IMAGE_TABLE_SCHEMA.names).cast(IMAGE_TABLE_SCHEMA))
            rows: dict[str, list[Ranked]] = {}
            for row in table.to_pylist():
                found = (row["typicality"], row["image_id"], row["uri"])
                rows.setdefault(row["label"], []).append(found)
            for label, images in rows.items():
                of_label.setdefault(label, LabelImages()).add(images)
    return ImageRanking(of_label, path)
