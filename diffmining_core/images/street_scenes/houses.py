"""The houses of a scene: the main one, but for its known elements, and its neighbours."""

from __future__ import annotations

import numpy as np

from diffmining_core.images.street_scenes import facades, roofs
from diffmining_core.images.street_scenes.canvas import (
    SCENE_UNITS,
    Canvas,
    Colour,
    Rect,
    between,
    chosen,
    mixed,
    shaded,
    varied,
)
from diffmining_core.images.street_scenes.layout import Layout
from diffmining_core.images.street_scenes.surroundings import (
    CLOTHES,
    draw_tree,
)
from diffmining_core.images.street_scenes.weather import Weather

WALLS: tuple[Colour, ...] = (
    (232, 222, 202), (224, 206, 172), (214, 188, 160), (236, 230, 220), (206, 196, 184),
    (222, 196, 186), (196, 204, 206), (218, 210, 178), (188, 172, 154), (204, 214, 200),
    (176, 122, 100), (226, 184, 140),
)  # fmt: skip
DOORS: tuple[Colour, ...] = (
    (110, 74, 48), (64, 84, 70), (122, 46, 42), (60, 70, 96), (206, 200, 188), (70, 62, 60),
)  # fmt: skip


def draw_neighbours(
    canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather
) -> None:
    """What stands left and right of the main house: other houses, or a garden with trees."""
    for start, direction in ((layout.house.x0, -1), (layout.house.x1, 1)):
        x = start + direction * between(rng, -0.5, 7)
        while 0 < x < SCENE_UNITS:
            width = between(rng, 20, 36)
            left = x if direction > 0 else x - width
            if rng.random() < 0.3:
                _draw_garden(canvas, rng, left, width, layout.ground, weather)
            else:
                _draw_neighbour(canvas, rng, left, width, layout, weather)
            x += direction * (width + between(rng, 0, 3))


def _draw_garden(
    canvas: Canvas, rng: np.random.Generator, left: float, width: float, ground: float,
    weather: Weather,
) -> None:  # fmt: skip
    """Trees behind a hedge, a fence or a low wall."""
    for u in (0.28, 0.74):
        x = left + width * (u + between(rng, -0.1, 0.1))
        draw_tree(canvas, rng, x, ground - 1, between(rng, 24, 44), weather.sun)
    border = Rect(left, ground - between(rng, 7, 10), left + width, ground + 0.5)
    kind = rng.random()
    if kind < 0.4:
        hedge = varied(rng, (78, 106, 60), 0.12)
        canvas.rect(border, shaded(hedge, 0.75), 2)
        for x, y, tone in rng.random((26, 3)).tolist():
            canvas.disc(
                *border.at(0.05 + 0.9 * x, 0.1 + 0.7 * y), 1.3, shaded(hedge, 0.8 + 0.5 * tone)
            )
    elif kind < 0.75:
        paint = chosen(rng, ((236, 234, 226), (140, 108, 78), (88, 92, 92)))
        for i in range(int(width / 2.2)):
            x = left + i * 2.2
            canvas.rect(
                Rect(x, border.y0, x + 1.3, border.y1), shaded(paint, 0.94 + 0.08 * (i % 2))
            )
        for v in (0.25, 0.75):
            canvas.line([border.at(0, v), border.at(1, v)], shaded(paint, 0.86), 0.8)
    else:
        draw_wall(canvas, rng, border, varied(rng, (182, 172, 158), 0.1))


def _draw_neighbour(
    canvas: Canvas, rng: np.random.Generator, left: float, width: float, layout: Layout,
    weather: Weather,
) -> None:  # fmt: skip
    """A common house: plain wall, common roof, common windows, a door."""
    height = between(rng, 28, 46)
    wall = Rect(left, layout.ground - height, left + width, layout.ground)
    colour = varied(rng, shaded(chosen(rng, WALLS), 0.96))
    roof = Rect(left - 1, wall.y0 - between(rng, 7, 15), left + width + 1, wall.y0 + 1)
    if rng.random() < 0.6:
        draw_chimney(canvas, rng, roof)
    _draw_side(canvas, wall, colour, layout.vanishing)
    draw_wall(canvas, rng, wall, colour)
    cover = (roofs.grey_shingle, roofs.brown_tile, roofs.grey_metal)[int(rng.random() * 3)]
    cover(canvas, rng, roof)
    canvas.cast([wall.at(0, 0), wall.at(1, 0), wall.at(1, 0.09), wall.at(0, 0.09)], weather.shadow)
    style = (facades.white_windows, facades.brown_windows, facades.grey_windows)
    draw_window = style[int(rng.random() * 3)]
    columns = max(2, int(width / 11))
    rows = 2 if height > 33 else 1
    for row in range(rows):
        top = wall.y0 + 4.5 + row * 15
        for column in range(columns):
            middle = left + (column + 0.5) * width / columns
            draw_window(canvas, rng, Rect(middle - 4.2, top, middle + 4.2, top + 9.5))
    if rows == 1:
        middle = left + width * between(rng, 0.3, 0.7)
        draw_door(canvas, rng, Rect(middle - 3, layout.ground - 12, middle + 3, layout.ground))


def draw_house(canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather) -> None:
    """The main house but for its roof, windows and shop sign: wall, chimney, shop window, door."""
    if rng.random() < 0.7:
        draw_chimney(canvas, rng, layout.roof)
    wall = layout.house
    colour = varied(rng, chosen(rng, WALLS))
    _draw_side(canvas, wall, colour, layout.vanishing)
    draw_wall(canvas, rng, wall, colour)
    shop = layout.shop
    display = Rect(shop.x0 + 1.5, shop.y1 - 1.5, shop.x1 - 1.5, layout.ground - 1.6)
    frame = varied(rng, chosen(rng, DOORS))
    canvas.rect(display, frame)
    for i in range(3):
        pane = display.part((i + 0.08) / 3, 0.06, (i + 0.92) / 3, 0.84)
        facades.glass(canvas, rng, pane)
        canvas.disc(*pane.at(between(rng, 0.3, 0.7), 0.82), 1.2, varied(rng, chosen(rng, CLOTHES)))
    draw_door(canvas, rng, layout.door)
    eave = [wall.at(0, 0.01), wall.at(1, 0.01), wall.at(1, 0.07), wall.at(0, 0.07)]
    canvas.cast(eave, weather.shadow)
    under = Rect(shop.x0, shop.y1, shop.x1, shop.y1 + 2.6)
    canvas.cast([under.at(0, 0), under.at(1, 0), under.at(1, 1), under.at(0, 1)], weather.shadow)


def draw_wall(canvas: Canvas, rng: np.random.Generator, r: Rect, colour: Colour) -> None:
    """A facade of plaster, boards or bricks, with a plinth."""
    canvas.rect(r, colour)
    finish = rng.random()
    if finish < 0.3:
        pitch = between(rng, 1.6, 2.4)
        for i in range(1, int(r.height / pitch)):
            y = r.y0 + i * pitch
            canvas.line([(r.x0, y), (r.x1, y)], shaded(colour, 0.9), 0.4)
    elif finish < 0.55:
        for x, y, tone in rng.random((46, 3)).tolist():
            brick = r.part(x * 0.94, y, x * 0.94 + 2.4 / r.width, y + 1.0 / r.height)
            canvas.rect(Rect(*brick[:3], min(brick.y1, r.y1)), shaded(colour, 0.84 + 0.24 * tone))
    elif finish < 0.7:
        for u0, u1 in ((0.0, 0.06), (0.94, 1.0)):
            canvas.rect(r.part(u0, 0, u1, 1), shaded(colour, 1.1))
        y = r.at(0, 0.47)[1]
        canvas.line([(r.x0, y), (r.x1, y)], shaded(colour, 1.12), 0.9)
    canvas.rect(
        Rect(r.x0, r.y1 - 2.4, r.x1, r.y1), mixed(shaded(colour, 0.7), (120, 116, 110), 0.5)
    )


def _draw_side(canvas: Canvas, wall: Rect, colour: Colour, vanishing: float) -> None:
    """The house's side that faces the middle of the street, seen at a slant."""
    side = 1 if wall.centre < vanishing else -1
    edge = wall.x1 if side > 0 else wall.x0
    depth = min(5.0, abs(vanishing - wall.centre) * 0.12)
    back = edge + side * depth
    face = [(edge, wall.y0), (back, wall.y0 + depth * 0.35), (back, wall.y1 - depth * 0.12),
            (edge, wall.y1)]  # fmt: skip
    canvas.poly(face, shaded(colour, 0.68))


def draw_chimney(canvas: Canvas, rng: np.random.Generator, roof: Rect) -> None:
    """A chimney that shows above the roof."""
    x = roof.at(between(rng, 0.25, 0.75), 0)[0]
    brick = varied(rng, (150, 108, 92), 0.12)
    stack = Rect(x - 2.2, roof.y0 - between(rng, 3, 5.5), x + 2.2, roof.y0 + 5)
    canvas.rect(stack, brick)
    canvas.rect(Rect(x + 0.8, stack.y0, stack.x1, stack.y1), shaded(brick, 0.8))
    canvas.rect(Rect(x - 2.8, stack.y0, x + 2.8, stack.y0 + 1.3), shaded(brick, 0.68))


def draw_door(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A panelled door under a small light."""
    colour = varied(rng, chosen(rng, DOORS))
    canvas.rect(r, (214, 206, 192))
    leaf = Rect(r.x0 + 0.8, r.y0 + 0.8, r.x1 - 0.8, r.y1)
    canvas.rect(leaf, colour)
    canvas.rect(leaf.part(0.12, 0.04, 0.88, 0.2), (84, 96, 108))
    for v0, v1 in ((0.28, 0.56), (0.64, 0.94)):
        canvas.rect(leaf.part(0.18, v0, 0.82, v1), shaded(colour, 0.84))
    canvas.disc(*leaf.at(0.84, 0.6), 0.5, (222, 198, 130))
