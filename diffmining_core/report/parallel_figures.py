"""One element across labels, as pictures: a sheet of tiles for the page, tables for papers.

In: patches as uint8 [k, k, 3], a column a label. Out: Pillow images, RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diffmining_core.report.figures import Tile, fitted, font, shortened

_GUTTER, _SHEET_TILE_MAX = 2, 128
_TILE, _GAP, _NAMES, _MARGIN = 96, 10, 124, 24
_HEADING, _SWATCH = 32, 18
_INK, _PAPER, _SOURCE = (26, 26, 24), (255, 255, 255), (214, 20, 26)
_FRAME = 4


@dataclass(frozen=True)
class Sheet:
    """Where tiles lie in one picture of `rows` × `columns`, `tile` px each, at a regular step."""

    tile: int
    rows: int
    columns: int

    @classmethod
    def of(cls, size: int, rows: int, columns: int) -> Sheet:
        """For patches of `size` px."""
        return cls(min(size, _SHEET_TILE_MAX), rows, columns)

    @property
    def width(self) -> int:
        """Of the picture, px."""
        return self.columns * self._step

    @property
    def height(self) -> int:
        """Of the picture, px."""
        return self.rows * self._step

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """x, y of a tile."""
        return column * self._step + _GUTTER, row * self._step + _GUTTER

    def drawn(self, tiles: Sequence[Sequence[Tile]]) -> Image.Image:
        """The picture of these rows; each tile's own border is repeated around it.

        So a neighbour's colours stay out when a browser smooths an enlarged tile.
        """
        sheet = Image.new("RGB", (self.width, self.height))
        for row, of_row in enumerate(tiles):
            for column, tile in enumerate(of_row):
                bordered = np.pad(
                    fitted(tile, self.tile), [(_GUTTER,) * 2] * 2 + [(0, 0)], mode="edge"
                )
                x, y = self.corner(row, column)
                sheet.paste(Image.fromarray(bordered), (x - _GUTTER, y - _GUTTER))
        return sheet

    @property
    def _step(self) -> int:
        return self.tile + 2 * _GUTTER


@dataclass(frozen=True)
class FigureRow:
    """A named row of a figure, a tile for each label.

    own: the columns of the source image itself. colours: below each tile, as #rrggbb.
    """

    name: str
    tiles: Sequence[Tile]
    own: Sequence[int] = ()
    colours: Sequence[str] = ()


def labels_figure(labels: Sequence[str], rows: Sequence[FigureRow]) -> Image.Image:
    """Rows across labels, a heading above each column; source images are framed and cornered."""
    step = _TILE + _GAP
    heights = [step + (_SWATCH if row.colours else 0) for row in rows]
    width = 2 * _MARGIN + _NAMES + len(labels) * step - _GAP
    figure = Image.new("RGB", (width, 2 * _MARGIN + _HEADING + sum(heights) - _GAP), _PAPER)
    draw = ImageDraw.Draw(figure)
    left = _MARGIN + _NAMES
    for column, label in enumerate(labels):
        words = font(label, 16)
        draw.text((left + column * step, _MARGIN), shortened(label, words, _TILE), _INK, words)
    top = _MARGIN + _HEADING
    for row, height in zip(rows, heights, strict=True):
        words = font(row.name, 16)
        name = shortened(row.name, words, _NAMES - _GAP)
        draw.text((_MARGIN, top + _TILE // 2), name, _INK, words, anchor="lm")
        for column, tile in enumerate(row.tiles):
            x = left + column * step
            figure.paste(Image.fromarray(fitted(tile, _TILE)), (x, top))
            if column in row.own:
                _frame(draw, x, top)
            if row.colours:
                swatch = (x, top + _TILE + 4, x + _TILE - 1, top + _TILE + _SWATCH - 3)
                draw.rectangle(swatch, fill=row.colours[column])
        top += height
    return figure


def _frame(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """A red frame outside of the tile and a filled corner, which is seen without colours too."""
    box = (x - _FRAME, y - _FRAME, x + _TILE + _FRAME - 1, y + _TILE + _FRAME - 1)
    draw.rectangle(box, outline=_SOURCE, width=_FRAME)
    corner = _TILE // 5
    draw.polygon([(x - 1, y - 1), (x + corner, y - 1), (x - 1, y + corner)], fill=_SOURCE)
