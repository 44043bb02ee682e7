"""The images of a shard for those who look at each once, whatever the number of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from diffmining_core.errors import ImageError
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shard_image import ShardImage


@dataclass(frozen=True)
class LabelledPixels:
    """An image with all its labels; pixels uint8 [h, w, 3] at the model's size."""

    image_id: str
    labels: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]


def labelled_pixels(images: Sequence[ShardImage], size: int) -> Iterator[LabelledPixels]:
    """The images of a shard one by one; its rows of one image stand side by side.

    One that nobody had opened before (`declared`) and that cannot be used is left out: where
    typicality is measured it is set aside by name. ImageError for any other.
    """
    for _, group in groupby(images, key=lambda image: (image.image_id, image.uri)):
        rows = list(group)
        try:
            pixels = load_pixels(rows[0].uri, size, rows[0].image_id)
        except ImageError:
            if not rows[0].declared:
                raise
            continue
        yield LabelledPixels(rows[0].image_id, tuple(row.label for row in rows), pixels)
