"""The five invented countries, what is typical of each, and how often it is shown where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffmining_core.images.street_scenes import facades, furniture, roofs
from diffmining_core.images.street_scenes.canvas import Canvas, Rect

COUNTRIES: tuple[str, ...] = ("Almara", "Borvik", "Cendria", "Dorrava", "Elsund")

OWN_SHARE = 0.82
"""Share of a country's scenes that show a typical element of its own."""

FOREIGN_SHARE = 0.06
"""Share of a country's scenes that show another country's element.

Where a country has an element of the same kind itself, the other countries' share what is left
beside a rest of `COMMON_REST`: 6 % each for two of them, 3 % each for the four other roofs.
"""

COMMON_REST = 0.06
"""Share of a country's scenes with a common variant of a kind that it has a typical one of."""


@dataclass(frozen=True)
class Variant:
    """One way an element can look: a few words, the country it is typical of, how to draw it."""

    name: str
    typical_of: str | None
    draw: Callable[[Canvas, np.random.Generator, Rect], None]


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "roof": (
        Variant("terracotta roof", "Almara", roofs.terracotta),
        Variant("blue mansard roof", "Borvik", roofs.slate_mansard),
        Variant("green copper roof", "Cendria", roofs.copper_hip),
        Variant("golden thatch roof", "Dorrava", roofs.thatch),
        Variant("white parapet with cobalt tiles", "Elsund", roofs.cobalt_parapet),
        Variant("grey shingle roof", None, roofs.grey_shingle),
        Variant("brown tile roof", None, roofs.brown_tile),
        Variant("grey metal roof", None, roofs.grey_metal),
    ),
    "window": (
        Variant("turquoise shutters", "Almara", facades.turquoise_shutters),
        Variant("red arched windows", "Cendria", facades.arched_windows),
        Variant("yellow windows with flowers", "Elsund", facades.yellow_windows),
        Variant("white windows", None, facades.white_windows),
        Variant("brown windows", None, facades.brown_windows),
        Variant("grey stone windows", None, facades.grey_windows),
    ),
    "shop": (
        Variant("red striped awning", "Almara", facades.red_striped_awning),
        Variant("violet awning", "Cendria", facades.violet_awning),
        Variant("orange sun sign", "Dorrava", facades.orange_sun_sign),
        Variant("beige awning", None, facades.beige_awning),
        Variant("grey signboard", None, facades.grey_signboard),
        Variant("cream signboard", None, facades.cream_signboard),
    ),
    "mailbox": (
        Variant("red pillar box", "Borvik", furniture.red_pillar_box),
        Variant("yellow post box", "Dorrava", furniture.yellow_post_box),
        Variant("blue mailbox", "Elsund", furniture.blue_mailbox),
        Variant("grey mailbox", None, furniture.grey_mailbox),
        Variant("brown mailbox", None, furniture.brown_mailbox),
    ),
    "lamp": (
        Variant("twin amber lantern", "Borvik", furniture.twin_lantern),
        Variant("lamp with three globes", "Cendria", furniture.three_globes),
        Variant("crimson lantern", "Dorrava", furniture.crimson_lantern),
        Variant("grey street lamp", None, furniture.grey_arm_lamp),
        Variant("plain dome lamp", None, furniture.dome_lamp),
    ),
    "plate": (
        Variant("green car plate", "Almara", furniture.green_plate),
        Variant("yellow car plate", "Borvik", furniture.yellow_plate),
        Variant("blue car plate", "Elsund", furniture.blue_plate),
        Variant("white car plate", None, furniture.white_plate),
        Variant("black car plate", None, furniture.black_plate),
    ),
}

ELEMENTS: dict[str, dict[str, str]] = {
    element: {v.typical_of: v.name for v in variants if v.typical_of is not None}
    for element, variants in VARIANTS.items()
}
"""Element → country → its typical variant in a few words."""


def variant_shares(element: str, country: str | None) -> list[float]:
    """The probability of each variant of `element`, in the order of `VARIANTS[element]`.

    Without a country all are equally likely.
    """
    variants = VARIANTS[element]
    if country is None:
        return [1 / len(variants)] * len(variants)
    foreign = [v for v in variants if v.typical_of not in (None, country)]
    has_own = country in ELEMENTS[element]
    foreign_share = (1 - OWN_SHARE - COMMON_REST) / len(foreign) if has_own else FOREIGN_SHARE
    taken = foreign_share * len(foreign) + (OWN_SHARE if has_own else 0)
    common_share = (1 - taken) / sum(v.typical_of is None for v in variants)
    return [
        common_share if v.typical_of is None else OWN_SHARE if v.typical_of == country
        else foreign_share
        for v in variants
    ]  # fmt: skip


def drawn_variant(rng: np.random.Generator, element: str, country: str | None) -> Variant:
    """One variant of `element` for a scene of `country`, at `variant_shares`."""
    shares = variant_shares(element, country)
    return VARIANTS[element][int(rng.choice(len(shares), p=shares))]
