"""The plot of overlap against forwards: a panel for each top, a line for each way of drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw

from benchmarks import speed_chart
from benchmarks.speed_chart import GRID, INK, MUTED, PAPER, SCALE, WIDTH, Box, Text, tick_step

LEFT, RIGHT, ABOVE, HEIGHT, BELOW = 60, 104, 40, 290, 56
"""Left of a panel's plot, right of it for the names, above it, its height, and below it, px."""
HEAD, LEGEND, MARGIN = 96, 76, 16
"""Where the panels and the legend's middle are, and the margin at the left, px."""
LETTER, BETWEEN = 7, 20
"""Width of a letter of the legend in a wide font, and between its entries, px."""
NAME_GAP = 15
"""Least distance of the middles of two names, px."""
FINER = 2
"""Times as many pixels while lines are drawn in the PNG, so that they are smooth."""

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One way of drawing: (forwards per image, overlap), ascending."""

    name: str
    colour: str
    points: list[Point]


@dataclass(frozen=True)
class Marks:
    """Runs in rounds with one way of drawing, by ascending share; `chosen` is the place of one."""

    colour: str
    points: list[Point]
    chosen: int


@dataclass(frozen=True)
class Panel:
    """What is drawn of one top; level: the overlap that is to be reached."""

    title: str
    curves: list[Curve]
    marks: list[Marks]
    level: float


@dataclass(frozen=True)
class Words:
    """What is written above the panels."""

    title: str
    below_it: str
    level: str
    chosen: str
    others: str


@dataclass(frozen=True)
class Line:
    """Straight pieces from point to point, px."""

    points: list[Point]
    colour: str
    width: float


@dataclass(frozen=True)
class Area:
    """A filled polygon, px; its edge is 1.5 px wide."""

    points: list[Point]
    fill: str
    edge: str


Mark: TypeAlias = Line | Area
Written: TypeAlias = Box | Text


def draw(panels: Sequence[Panel], words: Words, folder: Path, name: str) -> None:
    """Write `NAME.svg` and `NAME.png`."""
    written, marks, height = chart(panels, words)
    (folder / f"{name}.svg").write_text(svg(written, marks, height), encoding="utf-8")
    png(written, marks, height).save(folder / f"{name}.png", optimize=True)


def chart(panels: Sequence[Panel], words: Words) -> tuple[list[Written], list[Mark], int]:
    """What is drawn: boxes and text, what lies upon them, and the height of the picture in px."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = HEAD + rows * (ABOVE + HEIGHT + BELOW)
    written: list[Written] = [
        Box(0, 0, WIDTH, height, PAPER),
        Text(MARGIN, 24, words.title, 16),
        Text(MARGIN, 46, words.below_it, 11, MUTED),
    ]
    marks: list[Mark] = []
    _add_legend(words, written, marks)
    lowest = min(overlap for panel in panels for _, overlap in _all_points(panel))
    step = tick_step(1 - lowest) if lowest < 1 else 0.1
    lowest = max(0.0, 1 - step * math.ceil(round((1 - lowest) / step, 6) or 1))
    for place, panel in enumerate(panels):
        left = WIDTH / columns * (place % columns)
        top = HEAD + (ABOVE + HEIGHT + BELOW) * (place // columns)
        _add_panel(panel, left, top, WIDTH / columns, (lowest, step), written, marks)
    return written, marks, height


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places as near to those wanted as can be, in their order and no two nearer than `gap`."""
    groups: list[tuple[list[int], float]] = []  # members in order, and the place of the first
    for member in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        members, first = [member], wanted[member]
        while groups and groups[-1][1] + gap * len(groups[-1][0]) > first:
            members = groups.pop()[0] + members
            first = sum(wanted[i] - gap * rank for rank, i in enumerate(members)) / len(members)
        groups.append((members, first))
    placed = [0.0] * len(wanted)
    for members, first in groups:
        for rank, i in enumerate(members):
            placed[i] = first + gap * rank
    return placed


def svg(written: Sequence[Written], marks: Sequence[Mark], height: int) -> str:
    """The picture as SVG."""
    whole = speed_chart.svg(written, height)
    drawn = []
    for mark in marks:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
        if isinstance(mark, Line):
            drawn.append(
                f'<polyline points="{points}" fill="none" stroke="{mark.colour}" '
                f'stroke-width="{mark.width}" stroke-linejoin="round"/>'
            )
        else:
            drawn.append(
                f'<polygon points="{points}" fill="{mark.fill}" stroke="{mark.edge}" '
                'stroke-width="1.5"/>'
            )
    return whole.replace("</svg>", "\n".join([*drawn, "</svg>"]))


def png(written: Sequence[Written], marks: Sequence[Mark], height: int) -> Image.Image:
    """The same picture in pixels."""
    base = speed_chart.png(written, height)
    scale = SCALE * FINER
    image = base.resize((scale * WIDTH, scale * height), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        points = [(scale * x, scale * y) for x, y in mark.points]
        if isinstance(mark, Line):
            canvas.line(points, mark.colour, round(scale * mark.width), joint="curve")
        else:
            canvas.polygon(points, mark.fill)
            canvas.line([*points, *points[:2]], mark.edge, round(1.5 * scale), joint="curve")
    return image.resize(base.size, Image.Resampling.BOX)


def _add_panel(
    panel: Panel,
    left: float,
    top: float,
    width: float,
    scale: tuple[float, float],
    written: list[Written],
    marks: list[Mark],
) -> None:
    """One panel at (left, top); scale: the lowest overlap, and the step between ticks."""
    (lowest, step), begin, end = scale, left + LEFT, left + width - RIGHT
    bottom = top + ABOVE + HEIGHT
    ticks = sorted({forwards for curve in panel.curves for forwards, _ in curve.points})
    least, most = ticks[0], ticks[-1]

    def at(point: Point) -> Point:
        share = math.log(point[0] / least) / math.log(most / least) if most > least else 0.0
        up = (point[1] - lowest) / (1 - lowest)
        return begin + share * (end - begin), bottom - up * HEIGHT

    written.append(Text(begin, top + 16, panel.title, 13))
    for number in range(round((1 - lowest) / step) + 1):
        overlap = lowest + number * step
        y = at((least, overlap))[1]
        written.append(Box(begin, y - 0.5, end - begin, 1, GRID))
        written.append(Text(begin - 10, y, f"{100 * overlap:.0f} %", 11, MUTED, "end"))
    for forwards in ticks:
        x = at((forwards, lowest))[0]
        written.append(Box(x - 0.5, bottom, 1, 5, MUTED))
        written.append(Text(x, bottom + 15, f"{forwards:,.0f}", 11, MUTED, "middle"))
    middle = (begin + end) / 2
    written.append(Text(middle, bottom + 35, "UNet forwards per image", 11, MUTED, "middle"))
    marks += _dashes(begin, end, at((least, panel.level))[1])
    ends = [at(curve.points[-1]) for curve in panel.curves]
    for curve, (x, y), name_y in zip(
        panel.curves, ends, apart([y for _, y in ends], NAME_GAP), strict=True
    ):
        places = [at(point) for point in curve.points]
        marks.append(Line([(x, y), (x + 8, name_y), (x + 14, name_y)], curve.colour, 1))
        marks.append(Line(places, curve.colour, 2))
        marks += [_diamond(place, curve.colour, curve.colour, 2.2) for place in places]
        written.append(Text(x + 18, name_y, curve.name, 12, curve.colour))
    for runs in panel.marks:
        for place, point in enumerate(runs.points):
            marks.append(_run(at(point), runs.colour, place == runs.chosen))


def _add_legend(words: Words, written: list[Written], marks: list[Mark]) -> None:
    x = float(MARGIN)
    marks += _dashes(x, x + 34, LEGEND)
    written.append(Text(x + 42, LEGEND, words.level, 12))
    x += 42 + LETTER * len(words.level) + BETWEEN
    marks.append(_run((x, LEGEND), INK, True))
    written.append(Text(x + 14, LEGEND, words.chosen, 12))
    x += 14 + LETTER * len(words.chosen) + BETWEEN
    marks.append(_run((x, LEGEND), INK, False))
    written.append(Text(x + 14, LEGEND, words.others, 12))


def _all_points(panel: Panel) -> Iterable[Point]:
    yield from (point for curve in panel.curves for point in curve.points)
    yield from (point for runs in panel.marks for point in runs.points)
    yield (0.0, panel.level)


def _run(at: Point, colour: str, chosen: bool) -> Area:
    """A run in rounds: filled for the share that is mined with."""
    return _diamond(
        at, colour if chosen else PAPER, PAPER if chosen else colour, 7 if chosen else 5
    )


def _diamond(at: Point, fill: str, edge: str, radius: float) -> Area:
    (x, y), r = at, radius
    return Area([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], fill, edge)


def _dashes(begin: float, end: float, y: float) -> list[Line]:
    dash, gap = 6, 4
    starts = (begin + (dash + gap) * i for i in range(math.ceil((end - begin) / (dash + gap))))
    return [Line([(x, y), (min(x + dash, end), y)], INK, 1) for x in starts]
