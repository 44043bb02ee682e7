"""The plot of the saved tables: how many times as fast as the plain loop, machine by machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from benchmarks.speed_table import Row, Table, number

WIDTH = 960
NAMES, BARS, RATES, SHARES = 16, 384, 856, 944
"""Where names and bars begin, and where images a second and shares of the peak end, in px."""
ROW, BAR, HEAD, TOP, BOTTOM = 26, 14, 44, 62, 40
PAPER, INK, MUTED, GRID, ACCENT = "#ffffff", "#1a1a18", "#6f6e68", "#dddbd5", "#c2381a"
SCALE = 2
"""Pixels of the PNG to one of the SVG."""

Anchor: TypeAlias = Literal["start", "middle", "end"]
_PILLOW_ANCHORS = {"start": "lm", "middle": "mm", "end": "rm"}


@dataclass(frozen=True)
class Box:
    """A filled rectangle, px."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Text:
    """A line of text, its middle at the height `y`, px."""

    x: float
    y: float
    text: str
    size: int = 12
    colour: str = INK
    anchor: Anchor = "start"


Shape: TypeAlias = Box | Text


def draw(tables: Sequence[Table], folder: Path) -> None:
    """Write `speed.svg` and `speed.png`; nothing where no table has a ratio."""
    if not any(_bars(table) for table in tables):
        return
    shapes, height = chart(tables)
    (folder / "speed.svg").write_text(svg(shapes, height), encoding="utf-8")
    png(shapes, height).save(folder / "speed.png", optimize=True)


def chart(tables: Sequence[Table]) -> tuple[list[Shape], int]:
    """What is drawn, and the height of the picture in px."""
    tables = [table for table in tables if _bars(table)]
    highest = max(max(row.ratios) for table in tables for row in _bars(table))
    step = tick_step(highest)
    end = step * math.ceil(1.02 * highest / step)
    width = RATES - 110 - BARS

    def x(ratio: float) -> float:
        return BARS + ratio / end * width

    height = TOP + sum(HEAD + ROW * len(_bars(table)) for table in tables) + BOTTOM
    bottom = height - BOTTOM + 6
    shapes: list[Shape] = [
        Box(0, 0, WIDTH, height, PAPER),
        Text(NAMES, 24, "Times as fast as the plain research loop", 16),
        Text(
            NAMES, 46, "Medians; the black lines go from the least to the greatest round", 11, MUTED
        ),
    ]
    for tick in range(round(end / step) + 1):
        at = x(tick * step)
        shapes.append(Box(at - 0.5, TOP, 1, bottom - TOP, GRID))
        shapes.append(Text(at, bottom + 14, f"{tick * step:g}×", 11, MUTED, "middle"))
    shapes.append(Box(x(1) - 0.75, TOP, 1.5, bottom - TOP, MUTED))
    y = float(TOP)
    for table in tables:
        shapes.append(Text(NAMES, y + 26, table.machine, 13))
        shapes.append(Text(RATES, y + 26, "images/s", 11, MUTED, "end"))
        shapes.append(Text(SHARES, y + 26, "of the peak", 11, MUTED, "end"))
        y += HEAD
        for row in _bars(table):
            shapes += _row(row, y, x)
            y += ROW
    return shapes, height


def tick_step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, for five ticks or so."""
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= highest / 5)


def svg(shapes: Sequence[Shape], height: int) -> str:
    """The picture as SVG."""
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif">'
    ]
    for shape in shapes:
        if isinstance(shape, Box):
            drawn.append(
                f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" '
                f'height="{shape.height:.1f}" fill="{shape.colour}"/>'
            )
        else:
            drawn.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" '
                f'fill="{shape.colour}" text-anchor="{shape.anchor}" '
                f'dominant-baseline="central">{escape(shape.text)}</text>'
            )
    return "\n".join([*drawn, "</svg>", ""])


def png(shapes: Sequence[Shape], height: int) -> Image.Image:
    """The same picture in pixels."""
    image = Image.new("RGB", (SCALE * WIDTH, SCALE * height), PAPER)
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        x, y = SCALE * shape.x, SCALE * shape.y
        if isinstance(shape, Box):
            # A pixel at least: two rounds may be as fast as one another.
            wide, high = (max(1.0, SCALE * side) for side in (shape.width, shape.height))
            canvas.rectangle((x, y, x + wide - 1, y + high - 1), fill=shape.colour)
        else:
            font = ImageFont.load_default(SCALE * shape.size)
            anchor = _PILLOW_ANCHORS[shape.anchor]
            canvas.text((x, y), _spelled(shape.text), shape.colour, font, anchor)
    return image


def _spelled(text: str) -> str:
    """In the letters that Pillow's own font has."""
    return text.replace("×", "x").replace("–", "-").replace("…", "...")


def _bars(table: Table) -> list[Row]:
    """The rows that say how many times as fast; bytes, hundreds of times fewer, have no bar."""
    return [row for row in table.rows if row.ratio is not None and row.unit == "images/s"]


def _row(row: Row, y: float, x: Callable[[float], float]) -> list[Shape]:
    assert row.ratio is not None
    middle = y + ROW / 2
    name = row.what if len(row.what) <= 52 else f"{row.what[:51]}…"
    share = "–" if row.peak_share is None else f"{row.peak_share:.0%}"
    least, end = x(min(row.ratios)), x(max(row.ratios))
    shapes: list[Shape] = [
        Text(BARS - 10, middle, name, 12, INK, "end"),
        Box(BARS, middle - BAR / 2, x(row.ratio) - BARS, BAR, ACCENT),
        Text(max(end, x(1)) + 8, middle, f"{row.ratio:.2f}×"),
        Text(RATES, middle, number(row.here), 12, MUTED, "end"),
        Text(SHARES, middle, share, 12, MUTED, "end"),
    ]
    if len(row.ratios) > 1:
        shapes.append(Box(least, middle - 1, end - least, 2, INK))
    return shapes
