"""Random pictures as files, for measurements that ask how fast and not what for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diffmining_core.finetuning.images import Described, TrainingImage

LABELS = tuple(f"label {number}" for number in range(10))

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image file of the model's size."""

    image_id: str
    label: str
    path: Path

    def pixels(self) -> Pixels:
        """uint8 [h, w, 3], read anew."""
        with Image.open(self.path) as image:
            return np.array(image.convert("RGB"))


def draw_pictures(folder: Path, hw: tuple[int, int], count: int) -> list[Picture]:
    """Smooth random pictures of height and width `hw`, under ten labels in turn."""
    pictures = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, hw, mode="bicubic").clamp(0, 1)
        path = folder / f"{hw[0]}x{hw[1]}-{number}.png"
        Image.fromarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy()).save(path)
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        pictures.append(Picture(image_id, LABELS[number % len(LABELS)], path))
    return pictures


class PicturesToTrainOn:
    """The pictures as finetuning sees them."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def describe(self, index: int) -> Described:
        """Its id and label."""
        picture = self.pictures[index]
        return Described(picture.image_id, (picture.label,))

    def load(self, index: int) -> TrainingImage:
        """With its pixels."""
        picture = self.pictures[index]
        return TrainingImage(picture.pixels(), (picture.label,), None, picture.image_id)
