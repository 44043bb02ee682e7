"""Patches composed to pictures: sprites and covers for the page, and small strips.

In: patches as uint8 [k, k, 3]. Out: Pillow images, RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Tile = NDArray[np.uint8]
TileRows = Sequence[Sequence[Tile]]

FIGURE_ROWS = FIGURE_COLUMNS = 6
COLUMN_GAP, ROW_GAP = 2, 4  # px, the paper's
COVER_ROWS, COVER_COLUMNS = 3, 5
LABELS_PER_SHEET = 24

_COVER_TILE, _COVER_GAP = 80, 4
_SPRITE_COLUMNS, _SPRITE_GUTTER, _SPRITE_TILE = 20, 2, 128
INK, MUTED, PAPER = (26, 26, 24), (112, 110, 104), (255, 255, 255)
_SMALL_COLOURS = 96
_CAPTION = 12  # px of the letters below a small patch


@dataclass(frozen=True)
class Sprite:
    """Many patches in one picture; `tile` px each, at a regular step."""

    image: Image.Image
    tile: int

    def corner(self, index: int) -> tuple[int, int]:
        """x, y of the patch with this index."""
        row, column = divmod(index, _SPRITE_COLUMNS)
        step = self.tile + 2 * _SPRITE_GUTTER
        return column * step + _SPRITE_GUTTER, row * step + _SPRITE_GUTTER


def sprite(tiles: Sequence[Tile], largest: int = _SPRITE_TILE) -> Sprite:
    """All tiles, at most `largest` px, in one picture, each with its border repeated around it.

    The repeated border keeps a neighbour's colours out when a browser smooths an enlarged tile.
    """
    side = min(max((len(tile) for tile in tiles), default=1), largest)
    step = side + 2 * _SPRITE_GUTTER
    rows = -(-len(tiles) // _SPRITE_COLUMNS)
    sheet = Image.new("RGB", (min(len(tiles), _SPRITE_COLUMNS) * step or 1, rows * step or 1))
    result = Sprite(sheet, side)
    for index, tile in enumerate(tiles):
        x, y = result.corner(index)
        bordered = np.pad(fitted(tile, side), [(_SPRITE_GUTTER,) * 2] * 2 + [(0, 0)], mode="edge")
        sheet.paste(Image.fromarray(bordered), (x - _SPRITE_GUTTER, y - _SPRITE_GUTTER))
    return result


def cover(rows: TileRows) -> Image.Image:
    """A label at a glance for the overview, RGBA: its best clusters, one row each."""
    return _grid(rows, _COVER_TILE, _COVER_GAP, _COVER_GAP, (0, 0, 0, 0))


def cover_size(rows: Sequence[Sequence[object]]) -> tuple[int, int]:
    """Width and height in px of the cover of these rows."""
    return _grid_size(rows, _COVER_TILE, _COVER_GAP, _COVER_GAP)


def small_strip(tiles: Sequence[Tile], side: int) -> Image.Image:
    """One row of patches of `side` px in few colours, for where every byte counts."""
    return _grid([tiles], side, COLUMN_GAP, ROW_GAP, PAPER).quantize(_SMALL_COLOURS)


def captioned_strip(tiles: Sequence[Tile], captions: Sequence[str], side: int) -> Image.Image:
    """A `small_strip` whose patches are framed, with a short caption below each."""
    size = min(_CAPTION, side // 4)
    grid = _grid([tiles], side, COLUMN_GAP, ROW_GAP, PAPER)
    strip = Image.new("RGB", (grid.width, side + size + 2 * ROW_GAP), PAPER)
    strip.paste(grid)
    draw = ImageDraw.Draw(strip)
    for column, caption in enumerate(captions):
        x = column * (side + COLUMN_GAP)
        draw.rectangle((x, 0, x + side - 1, side - 1), outline=MUTED)
        draw.text((x + side // 2, side + ROW_GAP), caption, INK, font(caption, size), anchor="mt")
    palette = strip.reduce(2).quantize(_SMALL_COLOURS)  # to choose it takes the time
    return strip.quantize(palette=palette, dither=Image.Dither.NONE)


def font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; for scripts it has no letters for, DejaVu where the system has that."""
    if not text.isascii():
        try:
            return ImageFont.truetype("DejaVuSans.ttf", size)
        except OSError:
            pass
    return _own_font(size)


@cache  # it is unpacked anew each time, for longer than a strip takes to draw
def _own_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def shortened(
    text: str, text_font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text in one line of at most `width` px, cut off with "..." where it is longer."""
    text = " ".join(text.split())  # a line break would draw over the pictures below
    if text_font.getlength(text) <= width:
        return text
    while text and text_font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _grid(
    rows: TileRows, side: int, column_gap: int, row_gap: int, paper: tuple[int, ...]
) -> Image.Image:
    """Square tiles, enlarged to `side` px, row by row on `paper`."""
    mode = "RGBA" if len(paper) == 4 else "RGB"
    sheet = Image.new(mode, _grid_size(rows, side, column_gap, row_gap), paper)
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            at = (column * (side + column_gap), row * (side + row_gap))
            sheet.paste(Image.fromarray(fitted(tile, side)), at)
    return sheet


def _grid_size(
    rows: Sequence[Sequence[object]], side: int, column_gap: int, row_gap: int
) -> tuple[int, int]:
    columns = max((len(row) for row in rows), default=0)
    width = columns * (side + column_gap) - column_gap
    height = len(rows) * (side + row_gap) - row_gap
    return max(width, 1), max(height, 1)


def fitted(tile: Tile, side: int) -> Tile:
    """The square tile at `side` px."""
    if tile.shape[:2] == (side, side):
        return tile
    return np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC))
