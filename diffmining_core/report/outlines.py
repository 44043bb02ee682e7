"""Where something is known to be, drawn around it: a light line with a dark one outside of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_LINE = 3  # px of each of the two lines
_LIGHT, _DARK = (255, 255, 255), (20, 18, 15)


def outlined(picture: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """The RGB picture with lines around the true parts of mask [h, w], which is stretched to it.

    The lines lie outside, so that what is narrow is not hidden; what is true up to the border is
    open there.
    """
    within = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    within = within.resize(picture.size, Image.Resampling.NEAREST)
    light = _widened(within)
    dark = _widened(light)
    drawn = picture.copy()
    for colour, line in ((_DARK, dark), (_LIGHT, light)):
        drawn.paste(colour, mask=line)
    drawn.paste(picture, mask=within)
    return drawn


def _widened(within: Image.Image) -> Image.Image:
    """With what is at most a line's width away; a blur is much faster than MaxFilter."""
    return within.filter(ImageFilter.BoxBlur(_LINE)).point(lambda value: 255 if value else 0)
