"""Where things stand in a scene: drawn anew until no element hides another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffmining_core.images.street_scenes.canvas import SCENE_UNITS, Rect, between

ATTEMPTS = 200
"""Draws of the movable things before the house is moved too; about one draw in eight fits."""


@dataclass(frozen=True)
class Layout:
    """The places of one scene, in scene units.

    `ground` is the y where houses meet the pavement; `vanishing` the x the street runs towards;
    `road` the road's left and right edge at its far end and at the bottom of the scene.
    """

    ground: float
    vanishing: float
    road: tuple[float, float, float, float]
    house: Rect
    roof: Rect
    windows: tuple[Rect, ...]
    shop: Rect
    door: Rect
    lamp: Rect
    lamp_foot: float
    mailbox: Rect
    car: Rect
    plate: Rect

    @property
    def kept_clear(self) -> tuple[Rect, ...]:
        """What nothing may stand in front of: the elements' boxes."""
        return (self.roof, *self.windows, self.shop, self.lamp, self.mailbox, self.plate)


def drawn_layout(rng: np.random.Generator) -> Layout:
    """A layout in which the boxes of the elements lie within the scene and apart."""
    while True:
        house = _House(rng)
        for _ in range(ATTEMPTS):
            layout = _with_movables(rng, house)
            if layout is not None:
                return layout


class _House:
    """The main house: its wall, roof, upper windows, shop and door."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.ground = between(rng, 79, 90)
        width = between(rng, 36, 48)
        window_height, shop_height = between(rng, 13.5, 17), between(rng, 10.5, 13)
        wall_height = 3 + window_height + 2 + shop_height + between(rng, 9, 12)
        roof_height = between(rng, 14.5, 20)
        left = between(rng, 8, SCENE_UNITS - 8 - width)
        eave = self.ground - wall_height
        self.wall = Rect(left, eave, left + width, self.ground)
        overhang = between(rng, 0.8, 2.4)
        self.roof = Rect(left - overhang, eave - roof_height, left + width + overhang, eave + 1)
        self.windows = self._windows(rng, width, window_height)
        self._shop_and_door(rng, width, eave + 3 + window_height + 2, shop_height)

    def _windows(self, rng: np.random.Generator, width: float, height: float) -> tuple[Rect, ...]:
        count = 3 if width > 45 and rng.random() < 0.5 else 2
        pitch = width / count
        across = min(between(rng, 14, 18), pitch - 2.5)
        top = self.wall.y0 + 3
        centres = [self.wall.x0 + (i + 0.5) * pitch for i in range(count)]
        return tuple(Rect(c - across / 2, top, c + across / 2, top + height) for c in centres)

    def _shop_and_door(
        self, rng: np.random.Generator, width: float, top: float, height: float
    ) -> None:
        door_width = between(rng, 6.5, 8)
        shop_width = min(between(rng, 24, 32), width - door_width - 4)
        shop_left = rng.random() < 0.5
        gap = (width - door_width - shop_width) / 3
        x = self.wall.x0 + gap + (0 if shop_left else door_width + gap)
        self.shop = Rect(x, top, x + shop_width, top + height)
        x = self.wall.x0 + gap + (shop_width + gap if shop_left else 0)
        self.door = Rect(x, self.ground - between(rng, 14.5, 17), x + door_width, self.ground)


def _with_movables(rng: np.random.Generator, house: _House) -> Layout | None:
    """Lamp, mailbox and car placed at random, or None where they would hide something."""
    lamp_width, lamp_height = between(rng, 14, 18), between(rng, 17, 21)
    x, y = between(rng, 2, 126 - lamp_width), between(rng, 22, 46)
    lamp = Rect(x, y, x + lamp_width, y + lamp_height)
    lamp_foot = between(rng, house.ground + 5, house.ground + 13)
    pole = Rect(lamp.centre - 1.5, lamp.y1, lamp.centre + 1.5, lamp_foot)

    mail_width, mail_height = between(rng, 11.5, 14.5), between(rng, 19, 24)
    x, y = between(rng, 2, 126 - mail_width), between(rng, house.ground + 4, house.ground + 14)
    mailbox = Rect(x, y - mail_height, x + mail_width, y)

    car_width, car_foot = between(rng, 42, 52), between(rng, 117, 124)
    x = between(rng, 4, 124 - car_width)
    car = Rect(x, car_foot - car_width * between(rng, 0.66, 0.76), x + car_width, car_foot)
    plate_width = car_width * between(rng, 0.46, 0.52)
    plate_height = plate_width * between(rng, 0.42, 0.48)
    middle = car.at(0.5, 0.62)[1]
    plate = Rect(
        car.centre - plate_width / 2,
        middle - plate_height / 2,
        car.centre + plate_width / 2,
        middle + plate_height / 2,
    )
    fixed = [house.roof, *house.windows, house.shop]
    clear = (
        not any(r.grown(1).overlaps(m) for r in fixed for m in (lamp, pole, mailbox, car))
        and not lamp.grown(1).overlaps(mailbox)
        and not mailbox.grown(1).overlaps(pole)
        and not mailbox.grown(0.5).overlaps(car)
    )
    if not clear:
        return None
    far = between(rng, 17, 24)
    vanishing = car.centre + between(rng, -14, 14) * 0.5
    road = (vanishing - far / 2, vanishing + far / 2, car.x0 - 24, car.x1 + 24)
    return Layout(
        house.ground, vanishing, road, house.wall, house.roof, house.windows, house.shop,
        house.door, lamp, lamp_foot, mailbox, car, plate,
    )  # fmt: skip
