"""Roofs: one of each country, and the common grey and brown ones.

Each function fills the rectangle `r`, which is the box known to the ground truth.
"""

from __future__ import annotations

import numpy as np

from diffmining_core.images.street_scenes.canvas import (
    Canvas,
    Colour,
    Point,
    Rect,
    between,
    mixed,
    shaded,
    varied,
)

WHITE: Colour = (240, 238, 230)


def _slope(r: Rect, inset: float) -> list[Point]:
    """A roof plane seen from the street: its ridge is shorter by `inset` of the width each side."""
    return [r.at(0, 1), r.at(1, 1), r.at(1 - inset, 0), r.at(inset, 0)]


def _tiles(
    canvas: Canvas,
    rng: np.random.Generator,
    r: Rect,
    inset: float,
    colour: Colour,
    pitch: tuple[float, float],
    contrast: float,
    stagger: float,
) -> None:
    """Cover a slope with tiles of `pitch` (width, height) units, each a little different."""
    canvas.poly(_slope(r, inset), shaded(colour, 0.62))
    rows = max(2, round(r.height / pitch[1]))
    columns = max(3, round(r.width / pitch[0]))
    tones = 1 + contrast * (2 * rng.random((rows, columns + 1)) - 1)
    for row in range(rows):
        bottom, top = 1 - row / rows, 1 - (row + 0.86) / rows
        edge = inset * (1 - bottom)
        span = 1 - 2 * edge
        y0, y1 = r.at(0, top)[1], r.at(0, bottom)[1]
        # Light falls from above: the upper rows are a little brighter.
        light = 0.92 + 0.16 * row / rows
        shift = stagger * (row % 2)
        for column in range(columns + 1):
            u0 = min(max((column - shift) / columns, 0), 1)
            u1 = min(max((column + 0.9 - shift) / columns, 0), 1)
            if u1 <= u0:
                continue
            x0, x1 = r.at(edge + u0 * span, 0)[0], r.at(edge + u1 * span, 0)[0]
            canvas.rect(Rect(x0, y0, x1, y1), shaded(colour, light * tones[row, column]))


def terracotta(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """Rounded terracotta tiles in columns, with a row of tile ends along the eave."""
    colour = varied(rng, (212, 98, 56))
    body = Rect(r.x0, r.y0, r.x1, r.y1 - 1)
    inset = between(rng, 0.05, 0.12)
    columns = round(r.width / 2.6)
    canvas.poly(_slope(body, inset), shaded(colour, 0.72))
    rows = max(4, round(r.height / 3.2))
    tones = 1 + 0.14 * (2 * rng.random((columns, rows)) - 1)
    for i in range(columns):
        for j in range(rows):
            v1, v0 = 1 - j / rows, 1 - (j + 0.85) / rows
            edge1, edge0 = inset * (1 - v1), inset * (1 - v0)
            corners = [
                body.at(edge1 + (i + 0.06) / columns * (1 - 2 * edge1), v1),
                body.at(edge1 + (i + 0.74) / columns * (1 - 2 * edge1), v1),
                body.at(edge0 + (i + 0.74) / columns * (1 - 2 * edge0), v0),
                body.at(edge0 + (i + 0.06) / columns * (1 - 2 * edge0), v0),
            ]
            canvas.poly(corners, shaded(colour, float(tones[i, j])))
    for i in range(columns):
        x0, x1 = r.at((i + 0.05) / columns, 0)[0], r.at((i + 0.8) / columns, 0)[0]
        canvas.ellipse(Rect(x0, r.y1 - 2.2, x1, r.y1), shaded(colour, 1.12))
    canvas.line([body.at(inset, 0.03), body.at(1 - inset, 0.03)], shaded(colour, 1.2), 1.4)


def slate_mansard(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A steep slate-blue mansard with white dormers."""
    colour = varied(rng, (66, 96, 158))
    upper, lower = r.part(0.04, 0, 0.96, 0.26), r.part(0, 0.26, 1, 1)
    canvas.poly(_slope(upper, 0.1), shaded(colour, 1.28))
    _tiles(canvas, rng, lower, 0.04, colour, (2.6, 2.6), 0.16, 0.5)
    canvas.line([lower.at(0.03, 0), lower.at(0.97, 0)], shaded(colour, 1.6), 0.9)
    canvas.line([lower.at(0, 0.98), lower.at(1, 0.98)], WHITE, 0.9)
    dormers = 2 if r.width < 44 else 3
    for i in range(dormers):
        u = (i + 0.5) / dormers
        dormer = Rect(*lower.at(u - 0.075, 0.22), *lower.at(u + 0.075, 0.88))
        canvas.poly(
            [
                (dormer.x0 - 0.9, dormer.y0 + 1.2),
                (dormer.centre, dormer.y0 - 2),
                (dormer.x1 + 0.9, dormer.y0 + 1.2),
            ],
            WHITE,
        )
        canvas.rect(dormer, WHITE)
        canvas.rect(dormer.part(0.2, 0.18, 0.8, 0.92), (52, 62, 78))
        canvas.line([dormer.at(0.5, 0.18), dormer.at(0.5, 0.92)], WHITE, 0.4)


def copper_hip(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A hipped roof of green copper with standing seams and two gilt balls on its ridge."""
    colour = varied(rng, (86, 182, 146))
    body = r.part(0, 0.14, 1, 1)
    inset = between(rng, 0.2, 0.28)
    canvas.poly(_slope(body, inset), colour)
    panels = round(r.width / 3.4)
    tones = 1 + 0.1 * (2 * rng.random(panels) - 1)
    for i in range(panels):
        u0, u1 = i / panels, (i + 1) / panels
        top0, top1 = inset + u0 * (1 - 2 * inset), inset + u1 * (1 - 2 * inset)
        panel = [body.at(u0, 1), body.at(u1, 1), body.at(top1, 0), body.at(top0, 0)]
        canvas.poly(panel, shaded(colour, float(tones[i])))
        canvas.line([body.at(u0, 1), body.at(top0, 0)], shaded(colour, 0.72), 0.6)
    for _ in range(5):  # rain streaks
        u = between(rng, 0.2, 0.8)
        top = inset + u * (1 - 2 * inset)
        canvas.line([body.at(u, 0.9), body.at((u + top) / 2, 0.4)], shaded(colour, 1.25), 0.5)
    canvas.line([body.at(inset, 0.02), body.at(1 - inset, 0.02)], shaded(colour, 1.3), 1.2)
    canvas.line([body.at(0, 0.97), body.at(1, 0.97)], shaded(colour, 0.6), 1.0)
    for u in (inset, 1 - inset):
        x, y = body.at(u, 0)
        canvas.disc(x, y - 0.9, 1.3, (226, 184, 76))


def thatch(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A thick, rounded roof of golden straw with a darker, sewn ridge."""
    colour = varied(rng, (226, 174, 72))
    outline = [
        (0.0, 0.9), (0.03, 0.62), (0.1, 0.25), (0.17, 0.06), (0.26, 0.0), (0.74, 0.0),
        (0.83, 0.06), (0.9, 0.25), (0.97, 0.62), (1.0, 0.9), (0.96, 1.0), (0.8, 0.94),
        (0.65, 0.91), (0.5, 0.9), (0.35, 0.91), (0.2, 0.94), (0.04, 1.0),
    ]  # fmt: skip
    canvas.poly([r.at(u, v) for u, v in outline], shaded(colour, 0.8))
    us, vs, tones = rng.random(150), rng.random(150), rng.random(150)
    for u, v, tone in zip(us.tolist(), vs.tolist(), tones.tolist(), strict=True):
        half = 0.47 - 0.24 * max(0.0, 0.7 - v)
        x = 0.5 + (2 * u - 1) * half
        lean = (x - 0.5) * 0.12
        strand = [r.at(x, v * 0.74 + 0.02), r.at(x + lean, v * 0.74 + 0.2)]
        canvas.line(strand, shaded(colour, 0.72 + 0.58 * tone), 0.5)
    eave = [r.at(u, v - 0.05) for u, v in outline[10:]]
    canvas.line(eave, shaded(colour, 0.42), 1.3)
    ridge = r.part(0.2, 0.0, 0.8, 0.2)
    canvas.rect(ridge, shaded(colour, 0.62), 1)
    for i in range(8):
        peak = ridge.part(i / 8, 0.8, (i + 1) / 8, 1.7)
        canvas.poly([peak.at(0, 0), peak.at(1, 0), peak.at(0.5, 1)], shaded(colour, 0.62))
    canvas.line([ridge.at(0.02, 0.5), ridge.at(0.98, 0.5)], shaded(colour, 1.2), 0.4)


def cobalt_parapet(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A white parapet, curved up in the middle, with a band of cobalt tiles."""
    white = varied(rng, (246, 243, 236), 0.03)
    cobalt = varied(rng, (30, 74, 190))
    crest, wall = r.part(0.24, 0, 0.76, 0.42), r.part(0, 0.36, 1, 1)
    canvas.upper_half(crest, white)
    canvas.rect(wall, white)
    canvas.arc(Rect(crest.x0, crest.y0, crest.x1, crest.y1 + crest.height), 180, 360, cobalt, 1.1)
    canvas.rect(wall.part(0, 0, 0.25, 0.1), cobalt)
    canvas.rect(wall.part(0.75, 0, 1, 0.1), cobalt)
    x, y = r.at(0.5, 0.3)
    canvas.disc(x, y, r.height * 0.13, cobalt)
    canvas.disc(x, y, r.height * 0.07, (246, 214, 110))
    band = wall.part(0, 0.34, 1, 0.78)
    canvas.rect(band, cobalt)
    tiles = round(r.width / 5)
    for i in range(tiles):
        tile = band.part((i + 0.12) / tiles, 0.12, (i + 0.88) / tiles, 0.88)
        canvas.poly([tile.at(0.5, 0), tile.at(1, 0.5), tile.at(0.5, 1), tile.at(0, 0.5)], white)
        canvas.poly([tile.at(0.5, 0.3), tile.at(0.72, 0.5), tile.at(0.5, 0.7), tile.at(0.28, 0.5)],
                    mixed(cobalt, white, 0.2))  # fmt: skip
    canvas.rect(wall.part(0, 0.88, 1, 1), shaded(white, 0.82))


def grey_shingle(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A gable of grey shingles (common)."""
    colour = varied(rng, (128, 128, 130), 0.12)
    _tiles(canvas, rng, r, between(rng, 0.05, 0.2), colour, (3.4, 2.4), 0.08, 0.5)


def brown_tile(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A gable of flat brown tiles (common)."""
    colour = varied(rng, (116, 88, 72), 0.12)
    _tiles(canvas, rng, r, between(rng, 0.05, 0.2), colour, (4.2, 3.0), 0.09, 0.5)
    canvas.line([r.at(0, 0.97), r.at(1, 0.97)], shaded(colour, 0.6), 0.8)


def grey_metal(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A low roof of grey sheet metal (common)."""
    colour = varied(rng, (156, 160, 164), 0.12)
    inset = between(rng, 0.02, 0.14)
    canvas.poly(_slope(r, inset), colour)
    panels = round(r.width / 4.5)
    for i in range(1, panels):
        u = i / panels
        canvas.line([r.at(u, 1), r.at(inset + u * (1 - 2 * inset), 0)], shaded(colour, 0.86), 0.6)
    canvas.line([r.at(inset, 0.03), r.at(1 - inset, 0.03)], shaded(colour, 1.15), 0.8)
    canvas.line([r.at(0, 0.97), r.at(1, 0.97)], shaded(colour, 0.7), 1.0)
