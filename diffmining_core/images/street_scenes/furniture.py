"""What stands in the street: mailboxes, the heads of street lamps, and car plates.

Each function fills the rectangle `r`, which is the box known to the ground truth.
"""

from __future__ import annotations

import numpy as np

from diffmining_core.images.street_scenes.canvas import (
    Canvas,
    Colour,
    Rect,
    between,
    shaded,
    varied,
)
from diffmining_core.images.street_scenes.facades import lettering

IRON: Colour = (48, 50, 54)
PALE: Colour = (244, 242, 234)


def _rounded_body(canvas: Canvas, r: Rect, colour: Colour) -> None:
    """A cylinder: lighter where it faces the light, darker at its edges."""
    canvas.rect(r, shaded(colour, 0.72))
    canvas.rect(r.part(0.1, 0, 0.84, 1), colour)
    canvas.rect(r.part(0.2, 0, 0.4, 1), shaded(colour, 1.2))


def red_pillar_box(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A red cylinder with a domed cap, a black foot and a white notice."""
    colour = varied(rng, (208, 26, 34))
    canvas.upper_half(r.part(0, 0, 1, 0.16), shaded(colour, 0.9))
    canvas.rect(r.part(0, 0.13, 1, 0.22), shaded(colour, 0.75))
    _rounded_body(canvas, r.part(0.07, 0.22, 0.93, 0.88), colour)
    canvas.rect(r.part(0.2, 0.28, 0.8, 0.34), (40, 14, 16))
    canvas.rect(r.part(0.28, 0.42, 0.72, 0.62), PALE)
    lettering(canvas, rng, r.part(0.36, 0.46, 0.64, 0.57), (90, 90, 90))
    canvas.rect(r.part(0, 0.87, 1, 1), (34, 30, 32))


def yellow_post_box(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A yellow box with a slanting lid and a black horn, on a short black post."""
    colour = varied(rng, (252, 204, 22))
    canvas.rect(r.part(0.4, 0.6, 0.6, 1), IRON)
    canvas.rect(r.part(0.22, 0.95, 0.78, 1), IRON)
    canvas.poly([r.at(0.1, 0), r.at(0.9, 0), r.at(1, 0.14), r.at(0, 0.14)], shaded(colour, 1.08))
    canvas.rect(r.part(0, 0.13, 1, 0.72), colour)
    canvas.rect(r.part(0.84, 0.13, 1, 0.72), shaded(colour, 0.76))
    canvas.rect(r.part(0.14, 0.2, 0.74, 0.27), (60, 46, 10))
    x, y = r.at(0.42, 0.48)
    canvas.arc(Rect(x - 2.4, y - 2.4, x + 2.4, y + 2.4), 0, 360, (40, 34, 20), 0.9)
    canvas.line([(x + 1.8, y + 1.6), (x + 4, y + 2.8)], (40, 34, 20), 1.2)
    canvas.rect(r.part(0, 0.68, 1, 0.73), shaded(colour, 0.66))


def blue_mailbox(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A blue box with a round top, a white stripe and four short legs."""
    colour = varied(rng, (28, 94, 214))
    for u in (0.1, 0.74):
        canvas.rect(r.part(u, 0.84, u + 0.16, 1), shaded(colour, 0.5))
    canvas.upper_half(r.part(0, 0, 1, 0.3), shaded(colour, 1.16))
    canvas.rect(r.part(0, 0.29, 1, 0.88), colour)
    canvas.rect(r.part(0.86, 0.29, 1, 0.88), shaded(colour, 0.72))
    canvas.rect(r.part(0.16, 0.2, 0.84, 0.3), shaded(colour, 0.45))
    canvas.rect(r.part(0, 0.42, 1, 0.56), PALE)
    canvas.poly([r.at(0.3, 0.62), r.at(0.7, 0.62), r.at(0.5, 0.78)], PALE)


def grey_mailbox(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A plain steel mailbox on a post (common)."""
    colour = varied(rng, (150, 154, 158), 0.1)
    canvas.rect(r.part(0.42, 0.5, 0.58, 1), shaded(colour, 0.55))
    canvas.rect(r.part(0.06, 0.1, 0.94, 0.6), colour, 1.0)
    canvas.rect(r.part(0.8, 0.12, 0.94, 0.58), shaded(colour, 0.75))
    canvas.rect(r.part(0.2, 0.2, 0.72, 0.26), shaded(colour, 0.45))


def brown_mailbox(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A wooden letter box with a small gable on a post (common)."""
    colour = varied(rng, (126, 96, 68), 0.12)
    canvas.rect(r.part(0.4, 0.5, 0.6, 1), shaded(colour, 0.7))
    canvas.rect(r.part(0.1, 0.18, 0.9, 0.62), colour)
    canvas.poly([r.at(0, 0.2), r.at(0.5, 0), r.at(1, 0.2)], shaded(colour, 0.6))
    canvas.rect(r.part(0.26, 0.3, 0.74, 0.35), shaded(colour, 0.4))


def _lantern(canvas: Canvas, r: Rect, glass: Colour, iron: Colour) -> None:
    """A tapering lantern: cap, panes, foot."""
    canvas.poly([r.at(0.08, 0.22), r.at(0.5, 0), r.at(0.92, 0.22)], iron)
    canvas.poly([r.at(0, 0.24), r.at(1, 0.24), r.at(0.78, 0.92), r.at(0.22, 0.92)], iron)
    canvas.poly([r.at(0.1, 0.3), r.at(0.9, 0.3), r.at(0.72, 0.86), r.at(0.28, 0.86)], glass)
    canvas.line([r.at(0.5, 0.26), r.at(0.5, 0.9)], iron, 0.5)
    canvas.rect(r.part(0.3, 0.9, 0.7, 1), iron)


def twin_lantern(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """Two black lanterns with amber glass, side by side on a scrolled bar."""
    amber = varied(rng, (255, 168, 32), 0.05)
    iron: Colour = (26, 26, 30)
    canvas.rect(r.part(0.46, 0.0, 0.54, 1), iron)
    canvas.line([r.at(0.2, 0.94), r.at(0.8, 0.94)], iron, 1.2)
    canvas.disc(*r.at(0.5, 0.06), 1.1, iron)
    for u0, u1 in ((0.0, 0.44), (0.56, 1.0)):
        _lantern(canvas, r.part(u0, 0.1, u1, 0.95), amber, iron)


def three_globes(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """Three milky globes on curved turquoise-green arms."""
    arm = varied(rng, (14, 122, 110))
    radius = r.width * 0.2
    canvas.rect(r.part(0.44, 0.3, 0.56, 1), arm)
    bowl = Rect(r.x0 + radius, r.y0 + r.height * 0.3, r.x1 - radius, r.y1 - 0.6)
    canvas.arc(bowl, 0, 180, arm, 1.5)
    canvas.line([r.at(0.3, 0.96), r.at(0.7, 0.96)], arm, 1.4)
    for u, y in ((0.0, 0.5), (1.0, 0.5), (0.5, 0.0)):
        x = r.x0 + radius + u * (r.width - 2 * radius)
        top = r.y0 + radius + y * (r.height - 2 * radius) * 0.8
        canvas.rect(Rect(x - 1.2, top + radius * 0.7, x + 1.2, top + radius + 1), arm)
        canvas.disc(x, top, radius, (226, 222, 206))
        canvas.disc(x - 0.3, top - 0.3, radius * 0.8, (255, 252, 240))


def crimson_lantern(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """One large, ribbed crimson lantern with gilt cap, foot and tassel."""
    colour = varied(rng, (206, 18, 58))
    gilt: Colour = (238, 190, 74)
    canvas.rect(r.part(0.3, 0, 0.7, 0.1), gilt)
    canvas.ellipse(r.part(0, 0.07, 1, 0.84), shaded(colour, 0.8))
    canvas.ellipse(r.part(0.14, 0.07, 0.86, 0.84), colour)
    canvas.ellipse(r.part(0.32, 0.07, 0.68, 0.84), shaded(colour, 1.3))
    canvas.line([r.at(0.5, 0.08), r.at(0.5, 0.84)], shaded(colour, 0.75), 0.5)
    canvas.line([r.at(0.06, 0.45), r.at(0.94, 0.45)], gilt, 0.9)
    canvas.rect(r.part(0.3, 0.8, 0.7, 0.9), gilt)
    canvas.rect(r.part(0.44, 0.9, 0.56, 1), gilt)


def grey_arm_lamp(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A flat lamp at the end of a curved grey arm (common)."""
    grey = varied(rng, (104, 108, 112), 0.1)
    side = 1 if rng.random() < 0.5 else -1
    end = r.centre + side * r.width * 0.46
    canvas.line([r.at(0.5, 1), r.at(0.5, 0.45)], grey, 1.4)
    canvas.line([r.at(0.5, 0.5), (r.centre + side * 1.5, r.y0 + 3.0), (end, r.y0 + 1.4)], grey, 1.2)
    head = Rect(min(end, end - side * 7), r.y0 + 0.4, max(end, end - side * 7), r.y0 + 3.2)
    canvas.rect(head, shaded(grey, 0.8), 1.0)
    canvas.rect(head.part(0.1, 0.7, 0.9, 1), (236, 230, 206))


def dome_lamp(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A plain lamp under a dark dome (common)."""
    grey = varied(rng, (82, 86, 90), 0.1)
    canvas.rect(r.part(0.45, 0.3, 0.55, 1), grey)
    canvas.rect(r.part(0.26, 0.34, 0.74, 0.6), (214, 210, 196), 0.8)
    canvas.upper_half(r.part(0.12, 0.08, 0.88, 0.38), grey)
    canvas.rect(r.part(0.36, 0.58, 0.64, 0.68), grey)


def _plate(canvas: Canvas, rng: np.random.Generator, r: Rect, ground: Colour, ink: Colour) -> None:
    """A car plate: rim, ground, lettering in its right part."""
    canvas.rect(r, shaded(ink, 0.9), 0.8)
    canvas.rect(r.grown(-0.6), ground, 0.5)
    lettering(canvas, rng, r.part(0.27, 0.26, 0.93, 0.76), ink)


def yellow_plate(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A yellow plate with black letters and a blue end."""
    _plate(canvas, rng, r, varied(rng, (255, 212, 20), 0.05), (26, 26, 26))
    canvas.rect(r.part(0.03, 0.07, 0.2, 0.93), (24, 66, 178))


def green_plate(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A green plate with white letters and a white disc."""
    _plate(canvas, rng, r, varied(rng, (16, 138, 66), 0.06), PALE)
    canvas.disc(*r.at(0.14, 0.5), r.height * 0.2, PALE)


def blue_plate(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A bright blue plate with white letters and a golden triangle."""
    _plate(canvas, rng, r, varied(rng, (20, 108, 226), 0.06), PALE)
    canvas.poly([r.at(0.06, 0.2), r.at(0.06, 0.8), r.at(0.22, 0.5)], (255, 206, 60))


def white_plate(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A white plate with dark letters (common)."""
    _plate(canvas, rng, r, varied(rng, (236, 236, 230), 0.04), (48, 50, 56))


def black_plate(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A black plate with pale letters (common)."""
    shade = int(between(rng, 28, 48))
    _plate(canvas, rng, r, (shade, shade, shade), (206, 206, 200))
