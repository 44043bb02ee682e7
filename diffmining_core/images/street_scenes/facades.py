"""What hangs on a facade: windows, and the shop's awning or sign.

Each function fills the rectangle `r`, which is the box known to the ground truth.
"""

from __future__ import annotations

import numpy as np

from diffmining_core.images.street_scenes.canvas import (
    Canvas,
    Colour,
    Rect,
    between,
    chosen,
    mixed,
    shaded,
    varied,
)

WHITE: Colour = (238, 236, 228)
FLOWERS: tuple[Colour, ...] = ((232, 72, 110), (244, 130, 160), (250, 246, 240))


def glass(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A dark pane with a reflection of the sky and, at times, a curtain or a light behind it."""
    lit = rng.random() < 0.12
    pane = varied(rng, (236, 196, 120) if lit else (62, 76, 94), 0.15)
    canvas.rect(r, pane)
    canvas.poly([r.at(0, 0), r.at(0.75, 0), r.at(0, 0.7)], shaded(pane, 1.3))
    if rng.random() < 0.4:
        curtain = mixed(pane, (226, 222, 210), 0.6)
        canvas.poly([r.at(0, 0), r.at(0.34, 0), r.at(0.14, 1), r.at(0, 1)], curtain)
        canvas.poly([r.at(1, 0), r.at(0.66, 0), r.at(0.86, 1), r.at(1, 1)], curtain)


def _frame(canvas: Canvas, rng: np.random.Generator, r: Rect, colour: Colour, width: float) -> None:
    """A frame `width` units thick around a pane with a cross of bars."""
    canvas.rect(r, colour)
    pane = r.grown(-width)
    glass(canvas, rng, pane)
    canvas.line([pane.at(0.5, 0), pane.at(0.5, 1)], colour, 0.7)
    canvas.line([pane.at(0, 0.42), pane.at(1, 0.42)], colour, 0.7)


def turquoise_shutters(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A white window between two open turquoise shutters."""
    colour = varied(rng, (22, 176, 178))
    _frame(canvas, rng, r.part(0.27, 0.04, 0.73, 0.93), WHITE, 0.9)
    canvas.rect(r.part(0.22, 0.92, 0.78, 1), shaded(WHITE, 0.85))
    for u0, u1 in ((0.0, 0.28), (0.72, 1.0)):
        leaf = r.part(u0, 0, u1, 0.97)
        canvas.rect(leaf, colour)
        for i in range(1, 7):
            slat = [leaf.at(0.2, i / 7), leaf.at(0.8, i / 7)]
            canvas.line(slat, shaded(colour, 0.66), 0.5)
        canvas.line([leaf.at(0.04, 0.01), leaf.at(0.04, 0.99)], shaded(colour, 1.2), 0.4)


def arched_windows(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A round-arched window in a broad wine-red surround with a pale keystone."""
    colour = varied(rng, (160, 28, 72))
    arch = r.width * 0.42
    canvas.upper_half(Rect(r.x0, r.y0, r.x1, r.y0 + arch), colour)
    canvas.rect(Rect(r.x0, r.y0 + arch - 0.2, r.x1, r.y1), colour)
    inner = Rect(r.x0 + 2.4, r.y0 + 2.4, r.x1 - 2.4, r.y1 - 1.8)
    pane = varied(rng, (62, 76, 94), 0.12)
    canvas.upper_half(Rect(inner.x0, inner.y0, inner.x1, r.y0 + arch), pane)
    glass(canvas, rng, Rect(inner.x0, r.y0 + arch, inner.x1, inner.y1))
    canvas.line([inner.at(0.5, 0), inner.at(0.5, 1)], (238, 226, 214), 0.7)
    canvas.line([(inner.x0, r.y0 + arch), (inner.x1, r.y0 + arch)], (238, 226, 214), 0.7)
    canvas.poly([r.at(0.42, 0), r.at(0.58, 0), r.at(0.55, 0.19), r.at(0.45, 0.19)], (240, 226, 206))
    canvas.rect(r.part(0, 0.93, 1, 1), shaded(colour, 0.7))


def yellow_windows(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A broad sunny-yellow frame above a box of pink and white flowers."""
    colour = varied(rng, (250, 200, 30))
    _frame(canvas, rng, r.part(0.06, 0, 0.94, 0.84), colour, 2.0)
    trough = r.part(0, 0.8, 1, 1)
    canvas.rect(trough, shaded(colour, 0.78))
    for i in range(12):
        x, y = trough.at((i + 0.5) / 12, between(rng, -0.35, 0.35))
        leaf = i % 2 == 0
        canvas.disc(x, y, 1.15, varied(rng, (58, 126, 54)) if leaf else chosen(rng, FLOWERS))


def white_windows(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A plain white window with a sill (common)."""
    _frame(canvas, rng, r.part(0.16, 0.03, 0.84, 0.93), varied(rng, WHITE, 0.05), 1.0)
    canvas.rect(r.part(0.1, 0.92, 0.9, 1), (186, 184, 178))


def brown_windows(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A wooden window (common)."""
    _frame(canvas, rng, r.part(0.14, 0.03, 0.86, 0.97), varied(rng, (112, 82, 58), 0.12), 1.3)


def grey_windows(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A window in a grey stone surround (common)."""
    stone = varied(rng, (164, 160, 152))
    canvas.rect(r.part(0.08, 0, 0.92, 1), stone)
    _frame(canvas, rng, r.part(0.2, 0.12, 0.8, 0.9), varied(rng, (96, 98, 102)), 0.8)


def _striped_cloth(
    canvas: Canvas, r: Rect, first: Colour, second: Colour, stripes: int, scallops: bool
) -> None:
    """An awning: cloth sloping towards the street, and its valance, straight or scalloped."""
    valance = 0.68
    for i in range(stripes):
        u0, u1 = i / stripes, (i + 1) / stripes
        top0, top1 = 0.06 + 0.88 * u0, 0.06 + 0.88 * u1
        colour = first if i % 2 == 0 else second
        slope = [r.at(top0, 0), r.at(top1, 0), r.at(u1, valance), r.at(u0, valance)]
        canvas.poly(slope, colour)
        hem = r.part(u0, valance, u1, 1)
        if scallops:
            canvas.lower_half(hem, shaded(colour, 0.84))
        else:
            canvas.rect(hem, shaded(colour, 0.84))
    canvas.line([r.at(0.06, 0.03), r.at(0.94, 0.03)], shaded(first, 0.7), 0.6)
    canvas.line([r.at(0, valance), r.at(1, valance)], shaded(first, 0.6), 0.35)


def red_striped_awning(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """An awning with broad red and white stripes."""
    red = varied(rng, (214, 40, 46))
    _striped_cloth(canvas, r, red, (248, 244, 236), 9, scallops=False)


def violet_awning(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A violet awning with deep scallops and gilt piping."""
    violet = varied(rng, (118, 58, 178))
    _striped_cloth(canvas, r, violet, shaded(violet, 1.22), 6, scallops=True)
    canvas.line([r.at(0, 0.68), r.at(1, 0.68)], (236, 200, 96), 0.9)


def orange_sun_sign(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """An orange signboard with a sun in its raised middle and dark lettering."""
    colour = varied(rng, (244, 132, 24))
    dark: Colour = (74, 40, 20)
    canvas.upper_half(r.part(0.28, 0, 0.72, 0.5), shaded(colour, 0.8))
    canvas.rect(r.part(0, 0.22, 1, 1), shaded(colour, 0.8), 1.2)
    canvas.rect(r.part(0.02, 0.28, 0.98, 0.94), colour, 1.0)
    canvas.upper_half(r.part(0.31, 0.07, 0.69, 0.5), colour)
    x, y = r.at(0.5, 0.52)
    for k in range(12):
        angle = k * np.pi / 6
        tip = (x + r.height * 0.4 * float(np.cos(angle)), y + r.height * 0.4 * float(np.sin(angle)))
        canvas.line([(x, y), tip], (255, 240, 170), 0.9)
    canvas.disc(x, y, r.height * 0.24, (255, 246, 190))
    for u0, u1 in ((0.06, 0.34), (0.66, 0.94)):
        lettering(canvas, rng, r.part(u0, 0.42, u1, 0.8), dark)


def lettering(canvas: Canvas, rng: np.random.Generator, r: Rect, colour: Colour) -> None:
    """Strokes that look like a few letters from afar."""
    letters = max(2, round(r.width / 2.6))
    for i in range(letters):
        letter = r.part((i + 0.1) / letters, 0, (i + 0.8) / letters, 1)
        kind = int(rng.random() * 4)
        canvas.line([letter.at(0.1, 0), letter.at(0.1, 1)], colour, 0.55)
        if kind != 0:
            canvas.line([letter.at(0.9, 0 if kind > 1 else 0.5), letter.at(0.9, 1)], colour, 0.55)
        if kind != 1:
            canvas.line([letter.at(0.1, 0.04), letter.at(0.9, 0.04)], colour, 0.5)
        canvas.line([letter.at(0.1, 0.52), letter.at(0.9, 0.52)], colour, 0.5)


def beige_awning(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A plain beige awning (common)."""
    cloth = varied(rng, (204, 190, 164), 0.1)
    _striped_cloth(canvas, r, cloth, shaded(cloth, 0.95), 5, scallops=False)


def grey_signboard(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A plain grey signboard (common)."""
    colour = varied(rng, (112, 118, 122), 0.12)
    canvas.rect(r.part(0, 0.12, 1, 0.94), shaded(colour, 0.75))
    canvas.rect(r.part(0.02, 0.2, 0.98, 0.86), colour)
    lettering(canvas, rng, r.part(0.16, 0.36, 0.84, 0.7), (226, 226, 220))


def cream_signboard(canvas: Canvas, rng: np.random.Generator, r: Rect) -> None:
    """A plain cream signboard (common)."""
    colour = varied(rng, (222, 212, 190), 0.06)
    canvas.rect(r.part(0, 0.12, 1, 0.94), (104, 86, 66))
    canvas.rect(r.part(0.02, 0.2, 0.98, 0.86), colour)
    lettering(canvas, rng, r.part(0.2, 0.36, 0.8, 0.7), (70, 62, 54))
