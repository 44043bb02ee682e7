"""Typicality, patches and clusters against the elements planted in the drawn scenes.

The truth table has one row per planted box: file (relative to the dataset's folder), label (of the
image), element, typical_of (the label the element is typical of, null for one common to all) and
y0, x0, y1, x1 in pixels of the image, y1 and x1 exclusive. Images are mined at the size they are
drawn at, so these are pixels of the model-size image too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import upsample_bilinear

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from diffmining_core.store.maps import RaggedMaps

# A patch hits a box when they overlap by at least this share of the greatest overlap a patch and a
# box of their sizes can have, min(heights) · min(widths). So a patch centred on an element hits,
# whatever their shapes, as does one that holds the element or lies inside it; and a random patch
# hits about as often as a box of max(heights) × max(widths) is of the image.
HIT_SHARE = 0.5

ALGO = "planted-1"
"""Version of these measures; part of their units' keys."""

_BINS = 1 << 18  # sign, exponent and the first 9 of 23 mantissa bits: steps of 0.2 %


@dataclass(frozen=True)
class Box:
    """One planted element: rows y0 … y1 − 1 and columns x0 … x1 − 1 of its image, in pixels."""

    element: str
    typical_of: str | None
    y0: int
    x0: int
    y1: int
    x1: int

    def hit_by(self, y: int, x: int, size: int) -> bool:
        """Whether the patch with top left corner (y, x) hits this box, by the rule of HIT_SHARE."""
        return self.overlap(y, x, size) >= HIT_SHARE

    def overlap(self, y: int, x: int, size: int) -> float:
        """The area shared with that patch, as a share of the greatest for their sizes."""
        overlap_y = min(self.y1, y + size) - max(self.y0, y)
        overlap_x = min(self.x1, x + size) - max(self.x0, x)
        if min(overlap_y, overlap_x) <= 0:
            return 0.0
        greatest = min(self.y1 - self.y0, size) * min(self.x1 - self.x0, size)
        return overlap_y * overlap_x / greatest


def boxes_by_uri(truth: pa.Table, uris: Iterable[str]) -> dict[str, list[Box]]:
    """The planted boxes of each image, none for an image without any.

    A uri belongs to the file it ends with.
    """
    by_file: defaultdict[str, list[Box]] = defaultdict(list)
    for row in truth.select(["file", *Box.__dataclass_fields__]).to_pylist():
        by_file[row.pop("file")].append(Box(**row))
    return {uri: by_file.get(_file_of(uri, by_file), []) for uri in uris}


def check_truth(truth: pa.Table, uris: Iterable[str]) -> None:
    """InputError if the truth has no box for any of the images mined."""
    found = boxes_by_uri(truth, uris)
    if found and not any(found.values()):
        names = truth.column("file")
        raise InputError(
            f"the truth table should describe the images mined, but it has no box for any of them "
            f"(such as {next(iter(found))}; it has {names[0] if len(names) else 'no rows'}); give "
            "the truth.parquet of the dataset that was mined."
        )


def _file_of(uri: str, files: Mapping[str, object]) -> str:
    """The longest ending of the uri, in whole folder names, that is one of the files; else ""."""
    parts = uri.split("/")
    endings = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((ending for ending in endings if ending in files), "")


def planted_mask(boxes: Sequence[Box], label: str, hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """True [H, W] inside the boxes of elements that are typical of the label."""
    mask = np.zeros(hw, bool)
    for box in boxes:
        if box.typical_of == label:
            mask[max(box.y0, 0) : max(box.y1, 0), max(box.x0, 0) : max(box.x1, 0)] = True
    return mask


@dataclass(frozen=True)
class PixelScores:
    """How well typicality ranks planted pixels above the others, over any number of images.

    Holds two counts per bin of typicality. A bin is the leading bits of a float32, so bins follow
    the values over their whole range without knowing it beforehand, and memory does not grow with
    the images; pixels in one bin count as tied, which moves the average precision by less than
    1e-3. Sums of partial results are exact.
    """

    planted: npt.NDArray[np.int64]  # [_BINS], ascending typicality
    others: npt.NDArray[np.int64]

    @classmethod
    def empty(cls) -> PixelScores:
        """The scores of no image."""
        return cls(np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64))

    def add(
        self, typicality: npt.NDArray[np.floating[Any]], mask: npt.NDArray[np.bool_]
    ) -> PixelScores:
        """With the pixels of one image as well: typicality [H, W], finite, and its mask [H, W]."""
        if typicality.shape != mask.shape or not np.isfinite(typicality).all():
            raise ValueError(
                f"typicality {typicality.shape} should be finite and as large as the mask "
                f"{mask.shape}"
            )
        bins = _bin(typicality)
        planted = np.bincount(bins[mask], minlength=_BINS)
        others = np.bincount(bins[~mask], minlength=_BINS)
        return PixelScores(self.planted + planted, self.others + others)

    def merge(self, other: PixelScores) -> PixelScores:
        """The scores over the pixels of both."""
        return PixelScores(self.planted + other.planted, self.others + other.others)

    @property
    def base_rate(self) -> float:
        """Share of planted pixels: the average precision of a random ranking."""
        planted = self.planted.sum()
        return float(planted / max(planted + self.others.sum(), 1))

    @property
    def average_precision(self) -> float:
        """Mean over the planted pixels of the precision at their typicality; ValueError for none.

        Precision at a threshold is the planted share of the pixels at or above it.
        """
        planted, others = self.planted[::-1], self.others[::-1]
        if not planted.any():
            raise ValueError("average precision needs at least one planted pixel; none was scored")
        above, total = np.cumsum(planted), np.cumsum(planted + others)
        return float((planted * above / np.maximum(total, 1)).sum() / above[-1])


def _bin(typicality: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint32]:
    """The bin of each value, in the order of the values.

    Read as integers, positive float32 ascend and negative ones descend below the sign bit.
    """
    bits = (typicality.astype(np.float32) + np.float32(0)).view(np.uint32)  # +0 makes −0 into 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ordered >> np.uint32(32 - (_BINS.bit_length() - 1))


def score_pixels(
    maps: RaggedMaps, uris: Mapping[tuple[str, str], str], truth: pa.Table, cell: int
) -> PixelScores:
    """The pixel scores of one shard of maps, each upsampled to its image, `cell` pixels a value.

    uris gives each image's address by (image_id, label); maps of others are left out.
    """
    boxes = boxes_by_uri(truth, uris.values())
    scores = PixelScores.empty()
    for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True)):
        if pair not in uris:
            continue
        typicality = maps.map(i)
        hw = (cell * typicality.shape[0], cell * typicality.shape[1])
        mask = planted_mask(boxes[uris[pair]], pair[1], hw)
        scores = scores.add(upsample_bilinear(typicality, hw), mask)
    return scores


def _elements_hit(patches: pa.Table, truth: pa.Table) -> list[set[str]]:
    """For each patch, the elements typical of its label that it hits."""
    boxes = boxes_by_uri(truth, dict.fromkeys(patches["uri"].to_pylist()))
    return [
        {
            box.element
            for box in boxes[row["uri"]]
            if box.typical_of == row["label"] and box.hit_by(row["y"], row["x"], row["size"])
        }
        for row in patches.select(["uri", "label", "y", "x", "size"]).to_pylist()
    ]


def hits(selection: pa.Table, truth: pa.Table) -> dict[str, float]:
    """For each kind, the share of its patches that hit a planted element typical of their label."""
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    elements_hit = _elements_hit(selection, truth)
    for kind, elements in zip(selection["kind"].to_pylist(), elements_hit, strict=True):
        outcomes[kind].append(bool(elements))
    return {kind: sum(hit) / len(hit) for kind, hit in outcomes.items()}


def cluster_purity(clusters: pa.Table, truth: pa.Table, top: int = 5) -> dict[str, list[float]]:
    """The purity of each label's `top` first clusters, in their order.

    Purity is the share of a cluster's members that hit the typical element its members hit most; 0
    when they hit none.
    """
    members: defaultdict[tuple[str, int], list[set[str]]] = defaultdict(list)
    keys = zip(clusters["label"].to_pylist(), clusters["cluster"].to_pylist(), strict=True)
    for key, elements in zip(keys, _elements_hit(clusters, truth), strict=True):
        members[key].append(elements)

    purity: defaultdict[str, list[float]] = defaultdict(list)
    for label, cluster in sorted(members):
        if cluster < top:
            hit = members[label, cluster]
            commonest = max(Counter(e for elements in hit for e in elements).values(), default=0)
            purity[label].append(commonest / len(hit))
    return dict(purity)
