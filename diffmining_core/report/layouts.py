"""Figures for papers and slides: where pictures and words stand, then drawn as PNG, SVG or PDF.

In: patches as uint8 [k, k, 3]. Out: one description of a figure, `Figure`, and its three writers.
The same figure has the same bytes, whenever and wherever it is written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffmining_core.errors import InputError
from diffmining_core.report import figures
from diffmining_core.report.escaping import printable
from diffmining_core.report.figures import COLUMN_GAP, INK, MUTED, PAPER, ROW_GAP, Tile, TileRows

Ink = tuple[int, int, int]

TILE = 96
"""Pixels of a patch in a figure."""
FORMATS = ("png", "svg", "pdf")

_MARGIN = 40
_NAME, _HEADING, _LABEL, _TITLE = 20, 18, 26, 40  # px of letters
_NAMES_WIDTH, _BESIDE_NAMES, _HEADING_HEIGHT, _BETWEEN = 110, 14, 34, 28
_LABEL_HEIGHT = 44


@dataclass(frozen=True)
class Picture:
    """A square picture of `side` px whose top left corner is at (x, y)."""

    x: int
    y: int
    side: int
    tile: Tile

    @property
    def pixels(self) -> Tile:
        """The patch with at least as many pixels as it is shown with, for what can be enlarged."""
        return figures.fitted(self.tile, max(self.side, len(self.tile)))


@dataclass(frozen=True)
class Text:
    """Words in letters of `size` px that begin at x; y is their top, or their middle."""

    x: int
    y: int
    words: str
    size: int
    ink: Ink = INK
    at: Literal["top", "middle"] = "top"

    @property
    def baseline(self) -> float:
        """The y of the line that the letters stand on."""
        font = figures.font(self.words, self.size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow is built with FreeType
        ascent, descent = font.getmetrics()
        return self.y + (ascent if self.at == "top" else (ascent - descent) / 2)

    @property
    def width(self) -> float:
        """Px from the first letter to the end of the last."""
        return figures.font(self.words, self.size).getlength(self.words)


@dataclass(frozen=True)
class Figure:
    """A figure of width × height px: pictures and words on white paper."""

    title: str
    width: int
    height: int
    pictures: tuple[Picture, ...]
    texts: tuple[Text, ...] = ()

    def image(self) -> Image.Image:
        """The figure in pixels, RGB."""
        sheet = Image.new("RGB", (self.width, self.height), PAPER)
        for picture in self.pictures:
            tile = figures.fitted(picture.tile, picture.side)
            sheet.paste(Image.fromarray(tile), (picture.x, picture.y))
        draw = ImageDraw.Draw(sheet)
        for text in self.texts:
            font = figures.font(text.words, text.size)
            anchor = {"top": "la", "middle": "lm"}[text.at]
            draw.text((text.x, text.y), text.words, text.ink, font, anchor=anchor)
        return sheet

    def encoded(self, form: str) -> bytes:
        """The figure as the bytes of a PNG, SVG or PDF file; InputError for another `form`."""
        if form not in FORMATS:
            raise InputError(
                f"figures are written as {', '.join(FORMATS)}, not as {form!r}; name the file so"
            )
        return _WRITERS[form](self)

    def save(self, path: str | Path) -> None:
        """Write the figure to a file whose name ends in .png, .svg or .pdf."""
        Path(path).write_bytes(self.encoded(Path(path).suffix.lower().removeprefix(".")))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return _png(self)


def colour(ink: Ink) -> str:
    """An ink as the web writes it."""
    return "#{:02x}{:02x}{:02x}".format(*ink)


def own_font_file() -> bytes:
    """The TrueType file of the letters that figures are measured with: Aileron, which is CC0."""
    font = figures.font("", _NAME)
    assert isinstance(font, ImageFont.FreeTypeFont) and isinstance(font.path, io.BytesIO)
    return font.path.getvalue()


def clusters_figure(rows: TileRows, title: str = "") -> Figure:
    """The paper's main figure: a cluster per row, nearest members first, nothing else."""
    shown = [row[: figures.FIGURE_COLUMNS] for row in rows[: figures.FIGURE_ROWS]]
    return Figure(title, *_size(shown), tuple(_grid(shown, 0, 0)))


def strips_figure(strips: Mapping[str, Mapping[str, Sequence[Tile]]], title: str = "") -> Figure:
    """Columns of strips with a name at each row: {column heading: {row name: tiles}}.

    A single column has no heading.
    """
    names = list(next(iter(strips.values())))
    top = _HEADING_HEIGHT if len(strips) > 1 else 0
    texts = [
        Text(0, top + row * (TILE + ROW_GAP) + TILE // 2, name, _NAME, at="middle")
        for row, name in enumerate(names)
    ]
    longest = max((text.width for text in texts), default=0)
    left = max(_NAMES_WIDTH, math.ceil(longest) + _BESIDE_NAMES)
    pictures: list[Picture] = []
    height = 0
    for heading, rows in strips.items():
        tiles = list(rows.values())
        if top:
            texts.append(Text(left, 4, heading, _HEADING, MUTED))
        pictures += _grid(tiles, left, top)
        width, below = _size(tiles)
        left, height = left + width + _BETWEEN, max(height, below)
    return Figure(title, left - _BETWEEN, top + height, tuple(pictures), tuple(texts))


def overview_figure(title: str, labels: Sequence[tuple[str, TileRows]]) -> Figure:
    """Labels with the best clusters of each, named, in one sheet."""
    margin = _MARGIN
    block_width = figures.COVER_COLUMNS * (TILE + COLUMN_GAP) - COLUMN_GAP
    block_height = _LABEL_HEIGHT + figures.COVER_ROWS * (TILE + ROW_GAP) - ROW_GAP
    across = _across(len(labels), block_width, block_height)
    down = -(-len(labels) // across)
    top = margin + 76
    width = margin + across * (block_width + margin)
    texts = [_within(Text(margin, margin, title, _TITLE), width - 2 * margin)]
    pictures: list[Picture] = []
    for index, (label, rows) in enumerate(labels):
        row, column = divmod(index, across)
        x, y = margin + column * (block_width + margin), top + row * (block_height + margin)
        texts.append(_within(Text(x, y, label, _LABEL), block_width))
        pictures += _grid(rows, x, y + _LABEL_HEIGHT)
    height = top + down * (block_height + margin)
    return Figure(title, width, height, tuple(pictures), tuple(texts))


def _across(count: int, width: int, height: int) -> int:
    """How many of `count` blocks stand side by side in a sheet."""

    def badness(across: int) -> float:
        """Share of empty places, and distance of the proportions from 3:2."""
        down = -(-count // across)
        proportions = across * width / (down * height)
        return across * down / count + 0.3 * abs(math.log(proportions / 1.5))

    return min(range(1, 6), key=badness)


def _within(text: Text, width: int) -> Text:
    words = printable(text.words)
    words = figures.shortened(words, figures.font(words, text.size), width)
    return Text(text.x, text.y, words, text.size, text.ink, text.at)


def _grid(rows: TileRows, left: int, top: int) -> Iterator[Picture]:
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            x, y = left + column * (TILE + COLUMN_GAP), top + row * (TILE + ROW_GAP)
            yield Picture(x, y, TILE, np.ascontiguousarray(tile))


def _size(rows: TileRows) -> tuple[int, int]:
    """Width and height in px of a grid of patches."""
    columns = max((len(row) for row in rows), default=0)
    width = columns * (TILE + COLUMN_GAP) - COLUMN_GAP
    height = len(rows) * (TILE + ROW_GAP) - ROW_GAP
    return max(width, 1), max(height, 1)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.image().save(data, "PNG")
    return data.getvalue()


def _svg(figure: Figure) -> bytes:
    from diffmining_core.report.figure_svg import svg

    return svg(figure)


def _pdf(figure: Figure) -> bytes:
    from diffmining_core.report.figure_pdf import pdf

    return pdf(figure)


_WRITERS: dict[str, Callable[[Figure], bytes]] = {"png": _png, "svg": _svg, "pdf": _pdf}
