"""What is common to every country: hills, trees, ground, lamp poles, people, bushes."""

from __future__ import annotations

import math

import numpy as np

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
from diffmining_core.images.street_scenes.weather import Weather

CLOTHES: tuple[Colour, ...] = (
    (190, 60, 56), (60, 90, 150), (230, 226, 216), (66, 70, 76), (214, 164, 70), (88, 134, 96),
    (150, 96, 140), (120, 92, 70),
)  # fmt: skip
SKIN: tuple[Colour, ...] = ((236, 196, 166), (206, 158, 122), (150, 104, 76), (98, 66, 50))
LEAVES: tuple[Colour, ...] = (
    (86, 124, 62), (104, 138, 66), (70, 108, 66), (122, 142, 74), (96, 118, 84),
)  # fmt: skip


def draw_hills(canvas: Canvas, rng: np.random.Generator, ground: float, weather: Weather) -> None:
    """Two ranges of hills or far roofs, paler with distance."""
    for distance in (0.72, 0.5):
        colour = mixed(chosen(rng, ((92, 116, 110), (104, 118, 136), (106, 124, 84))),
                       weather.horizon, distance)  # fmt: skip
        crest = ground - between(rng, 14, 30) * distance * 1.4
        phase, swing = between(rng, 0, 6.3), between(rng, 2, 6)
        wave = between(rng, 0.03, 0.07)
        points = [
            (x, crest - swing * math.sin(phase + x * wave) - 1.5 * math.sin(phase * 3 + x * 0.19))
            for x in range(-4, SCENE_UNITS + 8, 4)
        ]
        canvas.poly([*points, (SCENE_UNITS, ground + 4), (0, ground + 4)], colour)


def draw_foliage(
    canvas: Canvas, rng: np.random.Generator, r: Rect, colour: Colour, leaves: int, sun: int
) -> None:
    """A crown of leaves: round tufts from dark to lit, brighter towards the sun."""
    angles, radii = rng.random(leaves) * 2 * np.pi, np.sqrt(rng.random(leaves))
    us, vs = radii * np.cos(angles), radii * np.sin(angles)
    order = np.argsort(-(vs - 0.45 * sun * us) + 0.5 * rng.standard_normal(leaves))
    sizes = 0.16 + 0.14 * rng.random(leaves)
    radius = min(r.width, r.height) / 2
    canvas.ellipse(r.part(0.14, 0.12, 0.86, 0.94), shaded(colour, 0.62))
    for i in order.tolist():
        u, v = float(us[i]), float(vs[i])
        tone = 0.92 - 0.3 * v + 0.2 * sun * u + 0.12 * (float(sizes[i]) - 0.23) * 10
        x, y = r.at(0.5 + 0.4 * u, 0.5 + 0.4 * v)
        size = float(sizes[i]) * radius
        canvas.ellipse(Rect(x - size * 1.15, y - size * 0.9, x + size * 1.15, y + size * 0.9),
                       shaded(colour, tone))  # fmt: skip


def draw_tree(
    canvas: Canvas, rng: np.random.Generator, x: float, foot: float, height: float, sun: int
) -> None:
    """A tree: a forked trunk and a crown, seldom a dark, narrow cypress."""
    bark = varied(rng, (98, 78, 62), 0.12)
    colour = varied(rng, chosen(rng, LEAVES), 0.12)
    if rng.random() < 0.2:
        crown = Rect(x - height * 0.13, foot - height, x + height * 0.13, foot - height * 0.08)
        colour = shaded(colour, 0.72)
    else:
        spread = height * between(rng, 0.28, 0.38)
        crown = Rect(x - spread, foot - height, x + spread, foot - height * 0.28)
    trunk = max(0.8, height * 0.035)
    middle = (x, crown.y1 - crown.height * 0.35)
    canvas.poly([(x - trunk, foot), (x + trunk, foot), (x + trunk * 0.6, middle[1]),
                 (x - trunk * 0.6, middle[1])], bark)  # fmt: skip
    draw_foliage(canvas, rng, crown, colour, int(22 + height * 0.7), sun)


def draw_ground(canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather) -> None:
    """Pavement or lawn, a kerb, and the road that runs towards the houses."""
    ground = layout.ground
    far0, far1, near0, near1 = layout.road
    stone = varied(rng, chosen(rng, ((186, 182, 174), (196, 184, 166), (168, 168, 170))), 0.06)
    canvas.rect(Rect(0, ground, SCENE_UNITS, SCENE_UNITS), stone)
    far = ground + 5
    if rng.random() < 0.3:
        lawn = varied(rng, (122, 146, 84), 0.1)
        canvas.poly([(0, far + 4), (far0 - 6, far + 4), (near0 - 22, 128), (0, 128)], lawn)
        canvas.poly([(128, far + 4), (far1 + 6, far + 4), (near1 + 22, 128), (128, 128)], lawn)
    else:
        _draw_slabs(canvas, layout.vanishing, ground, shaded(stone, 0.9))
    kerb = shaded(stone, 1.12)
    canvas.poly([(far0 - 1.4, far), (far1 + 1.4, far), (near1 + 5, 128), (near0 - 5, 128)], kerb)
    asphalt = varied(rng, chosen(rng, ((92, 94, 98), (106, 104, 102), (82, 84, 90))), 0.06)
    canvas.poly([(far0, far), (far1, far), (near1, 128), (near0, 128)], asphalt)
    for v in (0.3, 0.7):  # the lighter tracks of wheels
        x0, x1 = far0 + (far1 - far0) * v, near0 + (near1 - near0) * v
        canvas.poly(
            [(x0 - 1, far), (x0 + 1, far), (x1 + 8, 128), (x1 - 8, 128)], shaded(asphalt, 1.06)
        )
    _draw_markings(canvas, rng, layout, far)
    _cast_house_shadow(canvas, layout, weather)


def _cast_house_shadow(canvas: Canvas, layout: Layout, weather: Weather) -> None:
    """The shade along the houses' feet, and the main house's own, away from the sun."""
    ground, reach = layout.ground, -weather.sun * 9
    canvas.cast([(0, ground), (128, ground), (128, ground + 2), (0, ground + 2)], weather.shadow)
    left, right = layout.house.x0, layout.house.x1
    fallen = [
        (left, ground),
        (right, ground),
        (right + reach, ground + 7),
        (left + reach, ground + 7),
    ]
    canvas.cast(fallen, weather.shadow * 0.8)


def _draw_slabs(canvas: Canvas, vanishing: float, ground: float, colour: Colour) -> None:
    """The joints of the pavement, closer together with distance."""
    for y in (2.5, 6, 11, 18, 28):
        canvas.line([(0, ground + y), (128, ground + y)], colour, 0.3 + y / 40)
    horizon = ground - 12
    for i in range(-12, 13):
        x = vanishing + i * 9
        reach = (128 - horizon) / (ground - horizon)
        end = vanishing + (x - vanishing) * reach
        canvas.line([(x, ground), (end, 128)], colour, 0.4)


def _draw_markings(canvas: Canvas, rng: np.random.Generator, layout: Layout, far: float) -> None:
    """A dashed middle line or a zebra crossing."""
    far0, far1, near0, near1 = layout.road
    paint = varied(rng, (226, 224, 214), 0.05)

    def across(u: float, v: float) -> tuple[float, float]:
        # Equal steps on the road shrink towards the houses.
        depth = v * v
        left, right = far0 + (near0 - far0) * depth, far1 + (near1 - far1) * depth
        return left + (right - left) * u, far + (128 - far) * depth

    if rng.random() < 0.45:
        for i in range(7):
            u = (i + 0.25) / 7
            bar = [across(u, 0.36), across(u + 0.07, 0.36), across(u + 0.07, 0.58), across(u, 0.58)]
            canvas.poly(bar, paint)
        return
    for i in range(5):
        v0, v1 = 0.08 + i * 0.2, 0.19 + i * 0.2
        canvas.poly([across(0.49, v0), across(0.51, v0), across(0.51, v1), across(0.49, v1)], paint)


def draw_lamp_pole(canvas: Canvas, layout: Layout, weather: Weather) -> None:
    """The pole below the lamp's head, its foot and its shadow: alike for every lamp."""
    x, foot = layout.lamp.centre, layout.lamp_foot
    iron: Colour = (58, 60, 62)
    canvas.rect(Rect(x - 0.8, layout.lamp.y1 - 1, x + 0.8, foot), iron)
    canvas.rect(Rect(x + 0.1, layout.lamp.y1 - 1, x + 0.5, foot), shaded(iron, 1.5))
    canvas.rect(Rect(x - 1.8, foot - 4, x + 1.8, foot), shaded(iron, 0.9), 0.6)
    reach = -weather.sun * 20
    stripe = [(x - 1, foot), (x + 1, foot), (x + reach + 1, foot + 4), (x + reach - 1, foot + 4)]
    canvas.cast(stripe, weather.shadow * 0.8)


def draw_standing_shadow(canvas: Canvas, r: Rect, weather: Weather) -> None:
    """The shadow at the foot of something that stands on the ground."""
    reach = -weather.sun * r.width * 0.5
    canvas.cast_ellipse(
        Rect(r.x0 + min(reach, 0), r.y1 - 1.2, r.x1 + max(reach, 0), r.y1 + 2.2), weather.shadow
    )


def draw_people(canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather) -> None:
    """Up to two people on the pavement, where they hide no element."""
    for _ in range(int(rng.random() * 4)):
        height = between(rng, 14, 19)
        x, foot = between(rng, 4, 124), layout.ground + between(rng, 3, 9)
        person = Rect(x - height * 0.17, foot - height, x + height * 0.17, foot)
        if any(person.grown(0.5).overlaps(box) for box in layout.kept_clear):
            continue
        draw_standing_shadow(canvas, person, weather)
        _draw_person(canvas, rng, person)


def _draw_person(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A walking figure: legs, coat, arms, head, hair."""
    coat, trousers = varied(rng, chosen(rng, CLOTHES)), varied(rng, (64, 66, 84), 0.2)
    skin, hair = chosen(rng, SKIN), chosen(rng, ((50, 38, 30), (120, 84, 52), (196, 180, 160)))
    stride = between(rng, 0.02, 0.22)
    for u in (0.5 - stride, 0.5 + stride):
        canvas.line([r.at(0.5, 0.55), r.at(u, 0.98)], trousers, r.width * 0.24)
    canvas.poly([r.at(0.22, 0.22), r.at(0.78, 0.22), r.at(0.8, 0.62), r.at(0.2, 0.62)], coat)
    for u in (0.16, 0.84):
        canvas.line([r.at(0.5 + (u - 0.5) * 0.8, 0.24), r.at(u, 0.55)], shaded(coat, 0.82), 1.0)
    x, y = r.at(0.5, 0.11)
    canvas.disc(x, y - 0.3, r.height * 0.1, hair)
    canvas.disc(x, y + 0.3, r.height * 0.08, skin)


def draw_bushes(canvas: Canvas, rng: np.random.Generator, layout: Layout, weather: Weather) -> None:
    """A few bushes and tubs of flowers along the houses, where they hide no element."""
    for _ in range(3):
        width, height = between(rng, 6, 11), between(rng, 5, 8)
        x = between(rng, 0, 122)
        bush = Rect(x, layout.ground + 1.5 - height, x + width, layout.ground + 1.5)
        if any(bush.grown(0.5).overlaps(box) for box in (*layout.kept_clear, layout.door)):
            continue
        leaf = varied(rng, chosen(rng, LEAVES), 0.1)
        draw_foliage(canvas, rng, bush, leaf, 16, weather.sun)
        if rng.random() < 0.4:
            petal = chosen(
                rng, ((240, 236, 226), (232, 150, 170), (236, 204, 110), (176, 140, 200))
            )
            for u, v in rng.random((6, 2)).tolist():
                canvas.disc(*bush.at(0.2 + 0.6 * u, 0.2 + 0.5 * v), 0.7, petal)
