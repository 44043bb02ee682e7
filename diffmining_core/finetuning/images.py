"""The labelled images that a model is finetuned on, as the training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions


@dataclass(frozen=True)
class Described:
    """What is known of an image without reading it; detail: what its label does not say."""

    image_id: str
    labels: tuple[str, ...]
    detail: str | None = None


@dataclass(frozen=True)
class TrainingImage:
    """One image with all its labels; pixels uint8 [h, w, 3] at the model's size."""

    pixels: npt.NDArray[np.uint8]
    labels: tuple[str, ...]
    detail: str | None
    image_id: str
    uri: str = ""


class LabelledImages(Protocol):
    """The images to train on, by index; several labels of one image are one image here."""

    def __len__(self) -> int: ...

    def describe(self, index: int) -> Described:
        """Labels and id; cheap where the indices come in order."""

    def load(self, index: int) -> TrainingImage | None:
        """The image, or None if it proves unusable and the training should go on without it."""


def trained_square(
    image: TrainingImage, options: FinetuneOptions, place: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """The square [side, side, 3] of an image that is trained on.

    InputError naming the image if it should be a square already and is not.
    """
    side, (h, w) = options.side, image.pixels.shape[:2]
    if options.crop == "none" and (h, w) != (side, side):
        raise InputError(
            f"Training without a crop needs images of {side} × {side} px, but "
            f"{image.uri or image.image_id} is {w} × {h} px after resizing; train with random "
            "crops, or take it out of the dataset."
        )
    return random_crop(image.pixels, side, place)


def random_crop(
    pixels: npt.NDArray[np.uint8], side: int, place: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """The square window of `pixels` [h, w, 3] at `place`, two numbers in [0, 1)."""
    top = int(place[0] * (pixels.shape[0] - side + 1))
    left = int(place[1] * (pixels.shape[1] - side + 1))
    return pixels[top : top + side, left : left + side]
