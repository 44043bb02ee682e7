"""An image of a dataset shard as the stages meet it: plain, so that a model needs no Arrow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""left, top, width, height in pixels of the original image."""


def sound_box(values: Iterable[Any]) -> Box:
    """A box as somebody has written it; ValueError, TypeError or OverflowError if it is none."""
    left, top, width, height = map(float, values)
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) <= 0:
        raise ValueError
    return left, top, width, height


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
