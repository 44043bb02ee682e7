"""The cars of a scene: the near one that carries the plate, and a parked one. Common to all."""

from __future__ import annotations

import numpy as np

from diffmining_core.images.street_scenes.canvas import (
    Canvas,
    Colour,
    Point,
    Rect,
    between,
    chosen,
    mixed,
    shaded,
    varied,
)
from diffmining_core.images.street_scenes.layout import Layout
from diffmining_core.images.street_scenes.surroundings import (
    draw_standing_shadow,
)
from diffmining_core.images.street_scenes.weather import Weather

PAINTS: tuple[Colour, ...] = (
    (236, 236, 234), (178, 182, 186), (46, 48, 54), (168, 40, 40), (44, 78, 138), (52, 104, 84),
    (206, 190, 150), (214, 176, 60), (98, 104, 110), (110, 148, 178), (120, 66, 52),
)  # fmt: skip
CABINS: tuple[tuple[tuple[Point, ...], tuple[Point, ...]], ...] = (
    (  # a saloon
        ((0.14, 0.42), (0.22, 0.08), (0.3, 0.0), (0.7, 0.0), (0.78, 0.08), (0.86, 0.42)),
        ((0.2, 0.37), (0.265, 0.1), (0.32, 0.06), (0.68, 0.06), (0.735, 0.1), (0.8, 0.37)),
    ),
    (  # a van
        ((0.07, 0.42), (0.1, 0.06), (0.15, 0.0), (0.85, 0.0), (0.9, 0.06), (0.93, 0.42)),
        ((0.13, 0.36), (0.16, 0.1), (0.2, 0.07), (0.8, 0.07), (0.84, 0.1), (0.87, 0.36)),
    ),
    (  # an old, round one
        (
            (0.1, 0.45),
            (0.15, 0.2),
            (0.28, 0.04),
            (0.5, 0.0),
            (0.72, 0.04),
            (0.85, 0.2),
            (0.9, 0.45),
        ),
        (
            (0.24, 0.35),
            (0.27, 0.2),
            (0.36, 0.11),
            (0.5, 0.09),
            (0.64, 0.11),
            (0.73, 0.2),
            (0.76, 0.35),
        ),
    ),
)
"""The outlines of the cabin and of its rear window, as shares of the car's width and height."""


def draw_car(canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather) -> None:
    """A car from behind, big and near; its plate is drawn by the caller."""
    r = layout.car
    paint = varied(rng, chosen(rng, PAINTS))
    trim = mixed(paint, (40, 42, 46), 0.75)
    for u0, u1 in ((0.07, 0.23), (0.77, 0.93)):
        canvas.rect(r.part(u0, 0.78, u1, 1), (26, 26, 28), 1.5)
    cabin, window = CABINS[int(rng.random() * len(CABINS))]
    canvas.poly([r.at(u, v) for u, v in cabin], shaded(paint, 1.05))
    canvas.poly([r.at(u, v) for u, v in window], (50, 58, 68))
    glint = mixed((50, 58, 68), weather.horizon, 0.4)
    canvas.poly([r.at(0.3, 0.1), r.at(0.5, 0.08), r.at(0.38, 0.37), r.at(0.24, 0.37)], glint)
    for u in (0.34, 0.66):  # headrests
        canvas.rect(r.part(u - 0.05, 0.24, u + 0.05, 0.37), (36, 40, 46), 1)
    canvas.rect(r.part(0.03, 0.37, 0.97, 0.84), paint, 4)
    canvas.rect(r.part(0.07, 0.385, 0.93, 0.42), shaded(paint, 1.2), 1)
    canvas.rect(r.part(0.02, 0.76, 0.98, 0.92), trim, 2)
    for u0, u1 in ((0.045, 0.19), (0.81, 0.955)):
        lamp = r.part(u0, 0.45, u1, 0.6)
        canvas.rect(lamp, (176, 24, 28), 1)
        canvas.rect(lamp.part(0.1, 0.62, 0.9, 0.92), (240, 180, 150), 0.6)
    recess = layout.plate.grown(1.2)
    canvas.rect(recess, shaded(paint, 0.72), 1)
    canvas.rect(r.part(0.16, 0.93, 0.24, 0.96), (120, 120, 120))
    canvas.cast_ellipse(Rect(r.x0 - 3, r.y1 - 3.5, r.x1 + 3, r.y1 + 3), 0.45 + weather.shadow / 2)


def draw_parked_car(
    canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather
) -> None:
    """At times a small car parked along the houses, where it hides no element."""
    if rng.random() < 0.4:
        return
    length, x = between(rng, 21, 26), between(rng, -6, 110)
    foot = layout.ground + between(rng, 3, 5)
    r = Rect(x, foot - length * 0.4, x + length, foot)
    if any(r.grown(0.5).overlaps(box) for box in (*layout.kept_clear, layout.car)):
        return
    draw_standing_shadow(canvas, r, weather)
    paint = varied(rng, chosen(rng, PAINTS))
    cabin = [(0.16, 0.5), (0.27, 0.04), (0.34, 0.0), (0.64, 0.0), (0.72, 0.05), (0.85, 0.5)]
    canvas.poly([r.at(u, v) for u, v in cabin], shaded(paint, 1.06))
    window = [(0.22, 0.46), (0.31, 0.11), (0.66, 0.11), (0.77, 0.46)]
    canvas.poly([r.at(u, v) for u, v in window], (58, 68, 80))
    canvas.line([r.at(0.49, 0.08), r.at(0.49, 0.48)], paint, 0.8)
    canvas.rect(r.part(0, 0.42, 1, 0.84), paint, 1.8)
    canvas.rect(r.part(0.01, 0.7, 0.99, 0.84), shaded(paint, 0.72), 1)
    canvas.rect(r.part(0.0, 0.5, 0.04, 0.62), (236, 226, 190))
    canvas.rect(r.part(0.96, 0.5, 1.0, 0.62), (190, 44, 40))
    for u in (0.2, 0.79):
        wheel_x, wheel_y = r.at(u, 0.8)
        canvas.disc(wheel_x, wheel_y, r.height * 0.21, (30, 30, 32))
        canvas.disc(wheel_x, wheel_y, r.height * 0.1, (164, 166, 168))
