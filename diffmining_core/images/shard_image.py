"""An image of a dataset shard as the stages meet it: plain, so that a model needs no Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""left, top, width, height in pixels of the original image."""


@dataclass(frozen=True)
class ShardImage:
    """A good image of a shard under one of its labels; width and height in pixels, upright.

    declared: nobody has opened it yet; id and size are what the dataset's manifest says.
    """

    image_id: str
    uri: str
    label: str
    width: int
    height: int
    declared: bool = False
    detail: str | None = None
    boxes: tuple[Box, ...] = ()
