"""Pictures of signs: rows of tiles on clear ground, for a page of any colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.signs.sign import PictureRows

_HEIGHT, _GAP = 112, 4  # px of a tile, and between two
_WIDEST = 1200  # px; what is further right is left out


def picture(rows: PictureRows) -> Image.Image:
    """All tiles at one height, their proportions kept, a row beneath the other: RGBA."""
    drawn = [_row(row) for row in rows if row]
    width = max(sum(tile.width + _GAP for tile in row) - _GAP for row in drawn)
    height = len(drawn) * (_HEIGHT + _GAP) - _GAP
    sheet = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    for place, row in enumerate(drawn):
        x = 0
        for tile in row:
            sheet.paste(tile, (x, place * (_HEIGHT + _GAP)))
            x += tile.width + _GAP
    return sheet


def _row(tiles: Sequence[NDArray[np.uint8]]) -> list[Image.Image]:
    """The tiles that fit in a row."""
    row: list[Image.Image] = []
    for tile in tiles:
        height, width = tile.shape[:2]
        size = max(1, round(width * _HEIGHT / height)), _HEIGHT
        fitted = Image.fromarray(tile).resize(size, Image.Resampling.BICUBIC)
        if row and sum(one.width + _GAP for one in row) + fitted.width > _WIDEST:
            break
        row.append(fitted)
    return row
