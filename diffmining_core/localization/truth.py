"""Where the labels of images are, from boxes or masks, in pixels of the model-size image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from diffmining_core.errors import InputError
from diffmining_core.evaluation.masks import Mask, MaskFolder
from diffmining_core.evaluation.planted import boxes_by_uri
from diffmining_core.images.pixels import model_scale, resized_hw

if TYPE_CHECKING:
    import pyarrow as pa

    from diffmining_core.images.shard_image import Box, ShardImage


class Truth(Protocol):
    """What is known of where labels are."""

    def located(self, images: Sequence[ShardImage]) -> list[ShardImage]:
        """Those of the images whose own label is located, in their order."""
        ...

    def mask(self, image: ShardImage, size: int) -> Mask:
        """True [h, w] where the label of a located image is, at the model's size.

        All false where what is known of it falls between pixels or on the edge that is cut off.
        """
        ...


class BoxTruth:
    """The boxes that the images bring."""

    def located(self, images: Sequence[ShardImage]) -> list[ShardImage]:
        """The images that have boxes."""
        return [image for image in images if image.boxes]

    def mask(self, image: ShardImage, size: int) -> Mask:
        """The union of the image's boxes."""
        if not np.isfinite(image.boxes).all():
            raise InputError(
                f"image {image.uri}: its boxes under {image.label!r} should be four finite numbers "
                f"each, but are {image.boxes}; correct them in the dataset."
            )
        return box_mask(image.boxes, image.width, image.height, size)


@dataclass(frozen=True)
class BoxMasks:
    """The boxes that images bring, as the masks that `evaluation.masks` measures against."""

    boxed: Mapping[tuple[str, str], ShardImage]
    """The images with boxes, by address and label."""

    @classmethod
    def of(cls, images: Iterable[ShardImage]) -> BoxMasks:
        """Of those of the images that have boxes."""
        return cls({(image.uri, image.label): image for image in images if image.boxes})

    def mask(self, uri: str, label: str, size: int) -> Mask | None:
        """The union of the image's boxes; None if it has none, or they cover no pixel."""
        image = self.boxed.get((uri, label))
        if image is None:
            return None
        mask = BoxTruth().mask(image, size)
        return mask if mask.any() else None


@dataclass(frozen=True)
class PlantedTruth(BoxTruth):
    """The planted elements that are typical of an image's label, from the table `truth.parquet`."""

    table: pa.Table

    def located(self, images: Sequence[ShardImage]) -> list[ShardImage]:
        """The images with elements of their label, these as their boxes."""
        planted = boxes_by_uri(self.table, {image.uri for image in images})
        boxes = [
            tuple(
                (float(box.x0), float(box.y0), float(box.x1 - box.x0), float(box.y1 - box.y0))
                for box in planted[image.uri]
                if box.typical_of == image.label
            )
            for image in images
        ]
        return [replace(image, boxes=own) for image, own in zip(images, boxes, strict=True) if own]


@dataclass(frozen=True)
class MaskTruth:
    """The masks of a folder."""

    folder: MaskFolder

    def located(self, images: Sequence[ShardImage]) -> list[ShardImage]:
        """The images that have a mask."""
        return [image for image in images if self.folder.address(image.uri, image.label)]

    def mask(self, image: ShardImage, size: int) -> Mask:
        """The image's mask; InputError if its proportions are not those of the image."""
        mask = self.folder.mask(image.uri, image.label, size)
        hw = resized_hw(image.width, image.height, size)
        if mask is None or mask.shape != hw:
            came = "is gone" if mask is None else f"is {mask.shape[1]} × {mask.shape[0]} px"
            raise InputError(
                f"the mask of image {image.uri} under {image.label!r} should be {hw[1]} × {hw[0]} "
                f"px at the model's size, as the image is, but {came}; give the mask of this image."
            )
        return mask


def box_mask(boxes: Sequence[Box], width: int, height: int, size: int) -> Mask:
    """True [h, w] at the pixels of the model-size image whose centres lie in a box.

    boxes, width and height are in pixels of the original image, upright.
    """
    mask = np.zeros(resized_hw(width, height, size), bool)
    down, across = model_scale(width, height, size)
    for left, top, box_width, box_height in boxes:
        rows = _pixels_between(down * top, down * (top + box_height))
        columns = _pixels_between(across * left, across * (left + box_width))
        mask[rows, columns] = True
    return mask


def _pixels_between(start: float, end: float) -> slice:
    """The pixels of an axis whose centres, at i + 0.5, lie in [start, end)."""
    return slice(max(math.ceil(start - 0.5), 0), max(math.ceil(end - 0.5), 0))
