"""Typicality maps as pictures to lay over their image.

In: float32 maps at latent resolution. Out: RGBA pictures, clear where typicality is zero, warm
where the label helps (positive) and cool where it hurts (negative).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From next to zero to the end of the scale; readable with red-green blindness.
_WARM = np.array([[255, 196, 120], [247, 118, 52], [196, 22, 42]], dtype=np.float64)
_COOL = np.array([[150, 205, 245], [52, 138, 219], [22, 58, 150]], dtype=np.float64)
PIXELS_PER_CELL = 4  # the browser's own smoothing does the rest
_SCALE_QUANTILE = 0.99


def label_scale(maps: Iterable[NDArray[np.float32]]) -> float:
    """The |typicality| at which the colours of one label end: the 99th percentile over its maps.

    One scale for all maps of a label, before and after finetuning, so that colours compare.
    """
    magnitudes = [np.abs(one).ravel() for one in maps]
    if not magnitudes:
        return 1.0
    scale = float(np.quantile(np.concatenate(magnitudes), _SCALE_QUANTILE))
    return scale if scale > 0 else 1.0


def overlay(
    typicality: NDArray[np.float32], scale: float, pixels: float = PIXELS_PER_CELL
) -> Image.Image:
    """The map [h, w], upsampled bilinearly (`align_corners=False`) and coloured: RGBA.

    Each position becomes `pixels` × `pixels` px. Colour and opacity grow with |typicality| up to
    `scale`.
    """
    height, width = typicality.shape
    larger = Image.fromarray(typicality.astype(np.float32)).resize(
        (max(round(width * pixels), 1), max(round(height * pixels), 1)), Image.Resampling.BILINEAR
    )
    return Image.fromarray(diverging_colours(np.asarray(larger) / scale))


def smoothed(typicality: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """The map [h, w] blurred by a Gaussian of `sigma` cells, weighed anew at the edges."""
    rows, columns = (_gaussian_weights(side, sigma) for side in typicality.shape)
    return (rows @ typicality @ columns.T).astype(np.float32)


def _gaussian_weights(side: int, sigma: float) -> NDArray[np.float64]:
    """Matrix [side, side] that blurs one axis."""
    cells = np.arange(side)
    weights = np.exp(-0.5 * ((cells[:, None] - cells) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def diverging_colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """RGBA [..., 4] of values in [-1, 1]; what lies outside is clipped."""
    strength = np.clip(np.abs(values), 0, 1)
    stops = np.linspace(0, 1, len(_WARM))
    rgba = np.empty((*strength.shape, 4))
    for channel in range(3):
        warm = np.interp(strength, stops, _WARM[:, channel])
        cool = np.interp(strength, stops, _COOL[:, channel])
        rgba[..., channel] = np.where(values >= 0, warm, cool)
    rgba[..., 3] = 255 * strength
    return np.rint(rgba).astype(np.uint8)


def colour_bar(width: int = 256, height: int = 8) -> Image.Image:
    """The scale from -1 to 1 as a picture, over the mid-grey that stands for a photograph."""
    colours = diverging_colours(np.tile(np.linspace(-1, 1, width), (height, 1)))
    grey = Image.new("RGBA", (width, height), (200, 200, 200, 255))
    return Image.alpha_composite(grey, Image.fromarray(colours)).convert("RGB")
