"""What the scenes are drawn on: shapes in scene units, anti-aliased by supersampling, with shadows.

A scene is 128 × 128 units whatever its size in pixels, so every drawing step reads in "pixels of
the 128-px image", y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCENE_UNITS = 128
SUPERSAMPLING = 4

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Rect(NamedTuple):
    """A rectangle in scene units: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Width in scene units."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Height in scene units."""
        return self.y1 - self.y0

    @property
    def centre(self) -> float:
        """The x of the middle."""
        return (self.x0 + self.x1) / 2

    def at(self, u: float, v: float) -> Point:
        """The point at the shares (u, v) of width and height."""
        return self.x0 + u * self.width, self.y0 + v * self.height

    def part(self, u0: float, v0: float, u1: float, v1: float) -> Rect:
        """The part between the shares (u0, v0) and (u1, v1) of width and height."""
        return Rect(*self.at(u0, v0), *self.at(u1, v1))

    def grown(self, margin: float) -> Rect:
        """The rectangle with `margin` more on every side."""
        return Rect(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)

    def overlaps(self, other: Rect) -> bool:
        """Whether the two share any area."""
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )


class Canvas:
    """A supersampled RGB drawing and, beside it, a soft shadow layer multiplied in at the end."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._scale = size * SUPERSAMPLING / SCENE_UNITS
        self._shadow_scale = size / SCENE_UNITS
        self.image = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self.image)
        self.shadow = Image.new("L", (size, size), 255)
        self._shadow_draw = ImageDraw.Draw(self.shadow)

    def poly(self, points: Sequence[Point], fill: Colour) -> None:
        """Fill a polygon."""
        k = self._scale
        self._draw.polygon([(x * k, y * k) for x, y in points], fill=fill)

    def rect(self, r: Rect, fill: Colour, radius: float = 0) -> None:
        """Fill a rectangle, with corners rounded by `radius` units."""
        k = self._scale
        corners = (
            round(r.x0 * k),
            round(r.y0 * k),
            max(round(r.x1 * k) - 1, round(r.x0 * k)),
            max(round(r.y1 * k) - 1, round(r.y0 * k)),
        )
        if radius:
            self._draw.rounded_rectangle(corners, radius=radius * k, fill=fill)
        else:
            self._draw.rectangle(corners, fill=fill)

    def ellipse(self, r: Rect, fill: Colour) -> None:
        """Fill the ellipse within a rectangle."""
        k = self._scale
        self._draw.ellipse((r.x0 * k, r.y0 * k, r.x1 * k, r.y1 * k), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Fill a disc."""
        self.ellipse(Rect(x - radius, y - radius, x + radius, y + radius), fill)

    def upper_half(self, r: Rect, fill: Colour) -> None:
        """Fill an arch: the upper half of the ellipse whose upper half fills `r`."""
        k = self._scale
        bounds = (r.x0 * k, r.y0 * k, r.x1 * k, (r.y1 + r.height) * k)
        self._draw.pieslice(bounds, 180, 360, fill=fill)

    def lower_half(self, r: Rect, fill: Colour) -> None:
        """Fill the lower half of the ellipse whose lower half fills `r`."""
        k = self._scale
        bounds = (r.x0 * k, (r.y0 - r.height) * k, r.x1 * k, r.y1 * k)
        self._draw.pieslice(bounds, 0, 180, fill=fill)

    def line(self, points: Sequence[Point], fill: Colour, width: float = 0.5) -> None:
        """Draw a line `width` units thick."""
        k = self._scale
        pixels = max(1, round(width * k))
        self._draw.line([(x * k, y * k) for x, y in points], fill=fill, width=pixels, joint="curve")

    def arc(self, r: Rect, start: float, end: float, fill: Colour, width: float) -> None:
        """Draw a part of an ellipse's edge, from angle to angle in degrees clockwise."""
        k = self._scale
        bounds = (r.x0 * k, r.y0 * k, r.x1 * k, r.y1 * k)
        self._draw.arc(bounds, start, end, fill=fill, width=max(1, round(width * k)))

    def cast(self, points: Sequence[Point], depth: float) -> None:
        """Cast a soft shadow: the light left in the polygon is 1 − depth."""
        k = self._shadow_scale
        light = round(255 * (1 - depth))
        self._shadow_draw.polygon([(x * k, y * k) for x, y in points], fill=light)

    def cast_ellipse(self, r: Rect, depth: float) -> None:
        """Cast a soft round shadow."""
        k = self._shadow_scale
        light = round(255 * (1 - depth))
        self._shadow_draw.ellipse((r.x0 * k, r.y0 * k, r.x1 * k, r.y1 * k), fill=light)

    def downsampled(self) -> np.ndarray:
        """The drawing at its final size: float32 [size, size, 3], 0..255."""
        small = self.image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(small, dtype=np.float32)

    def light(self) -> np.ndarray:
        """The light that the shadows leave: float32 [size, size, 1], 0..1."""
        soft = self.shadow.filter(ImageFilter.GaussianBlur(1.1 * self._shadow_scale))
        return np.asarray(soft, dtype=np.float32)[..., None] / 255


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number in [low, high)."""
    return low + (high - low) * rng.random()


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor < 1) or lighter (factor > 1)."""
    r, g, b = colour
    return (
        min(255, int(r * factor)),
        min(255, int(g * factor)),
        min(255, int(b * factor)),
    )


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with a share (0..1) of `second` mixed in."""
    r, g, b = (int(a + (c - a) * share) for a, c in zip(first, second, strict=True))
    return r, g, b


def varied(rng: np.random.Generator, colour: Colour, amount: float = 0.07) -> Colour:
    """The colour with its brightness varied by ±amount and each channel by ±amount / 2."""
    brightness = between(rng, 1 - amount, 1 + amount)
    r, g, b = (
        max(0, min(255, int(c * brightness * between(rng, 1 - amount / 2, 1 + amount / 2))))
        for c in colour
    )
    return r, g, b


def chosen(rng: np.random.Generator, options: Sequence[Colour]) -> Colour:
    """One of the colours, each as likely."""
    return options[int(rng.random() * len(options))]
