"""Patches composed to pictures: sprites and covers for the page, figures for papers and slides.

In: patches as uint8 [k, k, 3]. Out: Pillow images, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

_TILE = 96  # px of a patch in a figure
_COVER_TILE, _COVER_GAP = 80, 4
_SPRITE_COLUMNS, _SPRITE_GUTTER, _SPRITE_TILE = 20, 2, 128
_INK, _MUTED, _PAPER = (26, 26, 24), (112, 110, 104), (255, 255, 255)
_MARGIN = 40
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


def cluster_figure(rows: TileRows) -> Image.Image:
    """The paper's main figure: a cluster per row, nearest members first, nothing else."""
    shown = [row[:FIGURE_COLUMNS] for row in rows[:FIGURE_ROWS]]
    return _grid(shown, _TILE, COLUMN_GAP, ROW_GAP, _PAPER)


def small_strip(tiles: Sequence[Tile], side: int) -> Image.Image:
    """One row of patches of `side` px in few colours, for where every byte counts."""
    return _grid([tiles], side, COLUMN_GAP, ROW_GAP, _PAPER).quantize(_SMALL_COLOURS)


def captioned_strip(tiles: Sequence[Tile], captions: Sequence[str], side: int) -> Image.Image:
    """A `small_strip` whose patches are framed, with a short caption below each."""
    size = min(_CAPTION, side // 4)
    grid = _grid([tiles], side, COLUMN_GAP, ROW_GAP, _PAPER)
    strip = Image.new("RGB", (grid.width, side + size + 2 * ROW_GAP), _PAPER)
    strip.paste(grid)
    draw = ImageDraw.Draw(strip)
    for column, caption in enumerate(captions):
        x = column * (side + COLUMN_GAP)
        draw.rectangle((x, 0, x + side - 1, side - 1), outline=_MUTED)
        draw.text((x + side // 2, side + ROW_GAP), caption, _INK, font(caption, size), anchor="mt")
    palette = strip.reduce(2).quantize(_SMALL_COLOURS)  # to choose it takes the time
    return strip.quantize(palette=palette, dither=Image.Dither.NONE)


def strips_figure(strips: Mapping[str, Mapping[str, Sequence[Tile]]]) -> Image.Image:
    """Columns of strips with a name at each row: {column heading: {row name: tiles}}.

    A single column has no heading.
    """
    columns = {name: _strip_grid(rows) for name, rows in strips.items()}
    names = list(next(iter(strips.values())))
    longest = max((font(name, 20).getlength(name) for name in names), default=0)
    names_width = max(110, math.ceil(longest) + 14)
    heading_height, between = 34 if len(columns) > 1 else 0, 28
    width = names_width + sum(grid.width + between for grid in columns.values()) - between
    height = heading_height + max(grid.height for grid in columns.values())
    figure = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(figure)
    for row, name in enumerate(names):
        middle = heading_height + row * (_TILE + ROW_GAP) + _TILE // 2
        draw.text((0, middle), name, _INK, font(name, 20), anchor="lm")
    left = names_width
    for heading, grid in columns.items():
        if heading_height:
            draw.text((left, 4), heading, _MUTED, font(heading, 18))
        figure.paste(grid, (left, heading_height))
        left += grid.width + between
    return figure


def overview_figure(title: str, labels: Sequence[tuple[str, TileRows]]) -> Image.Image:
    """Labels with the best clusters of each, named, in one sheet."""
    block_width = COVER_COLUMNS * (_TILE + COLUMN_GAP) - COLUMN_GAP
    block_height = 44 + COVER_ROWS * (_TILE + ROW_GAP) - ROW_GAP
    top = _MARGIN + 76

    def badness(across: int) -> float:
        """Share of empty places, and distance of the proportions from 3:2."""
        down = -(-len(labels) // across)
        return across * down / len(labels) + 0.3 * abs(
            math.log(across * block_width / (down * block_height) / 1.5)
        )

    across = min(range(1, 6), key=badness)
    down = -(-len(labels) // across)
    sheet = Image.new(
        "RGB",
        (
            _MARGIN + across * (block_width + _MARGIN),
            top + down * (block_height + _MARGIN),
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    title_font = font(title, 40)
    draw.text((_MARGIN, _MARGIN), shortened(title, title_font, sheet.width), _INK, title_font)
    for index, (label, rows) in enumerate(labels):
        row, column = divmod(index, across)
        x = _MARGIN + column * (block_width + _MARGIN)
        y = top + row * (block_height + _MARGIN)
        label_font = font(label, 26)
        draw.text((x, y), shortened(label, label_font, block_width), _INK, label_font)
        sheet.paste(_grid(rows, _TILE, COLUMN_GAP, ROW_GAP, _PAPER), (x, y + 44))
    return sheet


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


def _strip_grid(rows: Mapping[str, Sequence[Tile]]) -> Image.Image:
    return _grid(list(rows.values()), _TILE, COLUMN_GAP, ROW_GAP, _PAPER)


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
