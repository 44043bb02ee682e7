"""Typicality and patches against pixel masks of what a label names, such as defects of a surface.

A folder of masks mirrors the folder of images: `LABEL/STEM.png` for `LABEL/STEM.jpg`, true where a
pixel is above half of the mask's range. A label without masks has no truth and is left out; an
image without a mask among others of its label too.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.evaluation.planted import HIT_SHARE, PixelScores
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.pixels import FORMATS, model_size
from diffmining_core.patches.scoring import upsample_bilinear
from diffmining_core.store.maps import RaggedMaps
from diffmining_core.store.roots import filesystem

Mask = npt.NDArray[np.bool_]

ALGO = "masks-1"
"""Version of these measures; part of their units' keys."""


class Masks(Protocol):
    """Where in each image its label is."""

    def mask(self, uri: str, label: str, size: int) -> Mask | None:
        """The mask [h, w] of an image under a label, at the model's size; None if it has none."""


@dataclass(frozen=True)
class MaskFolder:
    """The masks below a folder, by local path or fsspec URL."""

    url: str

    @cached_property
    def files(self) -> dict[str, str]:
        """The mask's address by `LABEL/STEM`; InputError if there is none."""
        fs, path = filesystem(self.url)
        found = {
            f"{mask.parent.name}/{mask.stem}": str(fs.unstrip_protocol(name))
            for name in sorted(fs.find(path))
            if (mask := PurePosixPath(name)).suffix.lower() == ".png"
        }
        if not found:
            raise InputError(
                f"{self.url} should hold masks as LABEL/STEM.png, but has no PNG below it; give "
                "the folder that mirrors the folder of images."
            )
        return found

    def check(self) -> None:
        """InputError unless there is a mask; none is read."""
        _ = self.files

    @property
    def digest(self) -> str:
        """Sha256 hex over the names and bytes of the masks."""
        digest = hashlib.sha256()
        for name, url in self.files.items():
            digest.update(f"{name} {hashlib.sha256(read_bytes(url)).hexdigest()}\n".encode())
        return digest.hexdigest()

    def address(self, uri: str, label: str) -> str | None:
        """Where the mask of an image under a label is; None if it has none."""
        return self.files.get(f"{label}/{PurePosixPath(uri).stem}")

    def mask(self, uri: str, label: str, size: int) -> Mask | None:
        """The mask [h, w] of an image under a label, at the model's size; None if it has none."""
        url = self.address(uri, label)
        if url is None:
            return None
        with Image.open(io.BytesIO(read_bytes(url)), formats=FORMATS) as image:
            resized = model_size(image.convert("L"), size, Image.Resampling.NEAREST)
        return np.asarray(resized) > 127


def score_pixels(
    maps: RaggedMaps, uris: Mapping[tuple[str, str], str], masks: Masks, size: int
) -> dict[str, PixelScores]:
    """The pixel scores of one shard of maps by label, for images of the model's size `size`.

    uris gives each image's address by (image_id, label); maps of others are left out.
    """
    scores: defaultdict[str, PixelScores] = defaultdict(PixelScores.empty)
    for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True)):
        mask = masks.mask(uris[pair], pair[1], size) if pair in uris else None
        if mask is not None:
            typicality = upsample_bilinear(maps.map(i), mask.shape)
            scores[pair[1]] = scores[pair[1]].add(typicality, mask)
    return dict(scores)


def hits(selection: pa.Table, masks: Masks, size: int) -> dict[str, float]:
    """For each kind, the share of its patches that hit the mask of their image.

    Only patches of labels with masks count. A patch hits when the mask fills at least HIT_SHARE of
    what it could: of the patch, or of the whole mask where that is smaller.
    """
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for kind, hit in _outcomes(selection, masks, size):
        outcomes[kind].append(hit)
    return {kind: sum(hit) / len(hit) for kind, hit in outcomes.items()}


def _outcomes(selection: pa.Table, masks: Masks, size: int) -> Iterator[tuple[str, bool]]:
    """(kind, whether it hits) of each patch; the patches of an image one after the other."""
    columns = ["kind", "uri", "label", "y", "x", "size"]
    ordered = selection.select(columns).sort_by([("uri", "ascending"), ("label", "ascending")])
    of_image: tuple[str, str] | None = None
    mask: Mask | None = None
    for row in ordered.to_pylist():
        if of_image != (row["uri"], row["label"]):
            of_image = (row["uri"], row["label"])
            mask = masks.mask(*of_image, size)
        if mask is None:
            continue
        side = row["size"]
        under = mask[row["y"] : row["y"] + side, row["x"] : row["x"] + side]
        greatest = min(int(mask.sum()), side * side)
        yield row["kind"], greatest > 0 and int(under.sum()) >= HIT_SHARE * greatest
