"""One drawn street scene and what it is known to show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffmining_core.images.street_scenes import cars, houses, surroundings
from diffmining_core.images.street_scenes.canvas import SCENE_UNITS, Canvas, Rect, between
from diffmining_core.images.street_scenes.catalogue import VARIANTS, Variant, drawn_variant
from diffmining_core.images.street_scenes.layout import drawn_layout
from diffmining_core.images.street_scenes.weather import draw_sky, drawn_weather, photographed


@dataclass(frozen=True)
class Box:
    """An element in a scene: its kind, its variant in words, whose it is, where it is.

    `typical_of` is the country that the variant is typical of, None for a common one; the box holds
    the pixels [y0, y1) × [x0, x1).
    """

    element: str
    variant: str
    typical_of: str | None
    y0: int
    x0: int
    y1: int
    x1: int


@dataclass(frozen=True)
class Scene:
    """A drawn picture (RGB) and the boxes of all its elements, typical and common."""

    image: Image.Image
    boxes: tuple[Box, ...]


def draw_scene(rng: np.random.Generator, country: str | None, size: int = SCENE_UNITS) -> Scene:
    """Draw one scene, `size` × `size` pixels.

    In a scene of a country each of its typical elements is shown in 82 % of the draws; without a
    country every element is any of its variants with the same probability.
    """
    layout, weather = drawn_layout(rng), drawn_weather(rng)
    variants = {element: drawn_variant(rng, element, country) for element in VARIANTS}
    canvas = Canvas(size)
    draw_sky(canvas, rng, weather)
    surroundings.draw_hills(canvas, rng, layout.ground, weather)
    for _ in range(3):
        x, height = between(rng, 0, SCENE_UNITS), between(rng, 30, 52)
        surroundings.draw_tree(canvas, rng, x, layout.ground, height, weather.sun)
    surroundings.draw_ground(canvas, rng, layout, weather)
    houses.draw_neighbours(canvas, rng, layout, weather)
    houses.draw_house(canvas, rng, layout, weather)
    variants["roof"].draw(canvas, rng, layout.roof)
    for window in layout.windows:
        variants["window"].draw(canvas, rng, window)
    variants["shop"].draw(canvas, rng, layout.shop)
    surroundings.draw_bushes(canvas, rng, layout, weather)
    cars.draw_parked_car(canvas, rng, layout, weather)
    surroundings.draw_people(canvas, rng, layout, weather)
    surroundings.draw_lamp_pole(canvas, layout, weather)
    variants["lamp"].draw(canvas, rng, layout.lamp)
    surroundings.draw_standing_shadow(canvas, layout.mailbox, weather)
    variants["mailbox"].draw(canvas, rng, layout.mailbox)
    cars.draw_car(canvas, rng, layout, weather)
    variants["plate"].draw(canvas, rng, layout.plate)
    places = {
        "roof": (layout.roof,),
        "window": layout.windows,
        "shop": (layout.shop,),
        "mailbox": (layout.mailbox,),
        "lamp": (layout.lamp,),
        "plate": (layout.plate,),
    }
    boxes = tuple(
        _box(element, variants[element], place, size)
        for element, rects in places.items()
        for place in rects
    )
    return Scene(photographed(canvas, rng, weather), boxes)


def _box(element: str, variant: Variant, r: Rect, size: int) -> Box:
    """The pixels that an element's rectangle touches by at least half."""
    k = size / SCENE_UNITS
    y0, x0, y1, x1 = (math.floor(edge * k + 0.5) for edge in (r.y0, r.x0, r.y1, r.x1))
    return Box(element, variant.name, variant.typical_of, y0, x0, y1, x1)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A plain sentence that names one to four of the scene's elements and never a country.

    For example "A street with a terracotta roof and a blue mailbox."
    """
    names = list(dict.fromkeys(box.variant for box in scene.boxes))
    count = int(rng.integers(1, 5))
    shown = [_with_article(names[i]) for i in rng.permutation(len(names))[:count]]
    listed = shown[0] if count == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]
    return f"A street with {listed}."


def _with_article(name: str) -> str:
    """The name after "a" or "an", or bare where it is a plural ("shutters", "windows")."""
    if "windows" in name or "shutters" in name:
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
