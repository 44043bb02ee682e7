"""The light of a scene: the hour and the sky, and what a camera makes of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from diffmining_core.images.street_scenes.canvas import Canvas, Colour, between, varied

NOISE_SIDE = 512
WHITE_CLOUD: Colour = (254, 254, 254)


@dataclass(frozen=True)
class Weather:
    """The sky's colours from top to horizon, its clouds, and the light it gives.

    `tint` multiplies red, green and blue; `sun` is the side that the sun stands on (−1 left, 1
    right); `shadow` is the depth (0..1) of a shadow in full sun.
    """

    top: Colour
    horizon: Colour
    cloud: Colour
    cloudiness: float
    tint: tuple[float, float, float]
    gamma: float
    shadow: float
    sun: int


@dataclass(frozen=True)
class _Hour:
    """A kind of day, before its variation."""

    top: Colour
    horizon: Colour
    cloud: Colour
    cloudiness: float
    tint: tuple[float, float, float]
    gamma: float
    shadow: float


_CLEAR = _Hour((70, 136, 216), (200, 226, 242), WHITE_CLOUD, 0.5, (1.04, 1.02, 0.97), 0.92, 0.46)
_FAIR = _Hour((104, 164, 226), (220, 232, 238), WHITE_CLOUD, 0.72, (1.03, 1.01, 0.98), 0.93, 0.38)
_GOLDEN = _Hour(
    (108, 150, 206), (252, 220, 168), (255, 238, 212), 0.55, (1.09, 1.0, 0.85), 0.95, 0.44
)
_ROSY = _Hour(
    (150, 172, 204), (248, 212, 190), (252, 230, 216), 0.6, (1.06, 0.99, 0.93), 0.97, 0.32
)
_HAZY = _Hour((182, 198, 212), (232, 234, 232), (240, 242, 242), 0.8, (1.0, 1.0, 1.0), 0.95, 0.2)
_GREY = _Hour(
    (142, 158, 174), (202, 208, 212), (216, 222, 226), 0.85, (0.95, 0.98, 1.03), 1.04, 0.15
)
_DUSK = _Hour((96, 112, 166), (242, 188, 166), (236, 188, 186), 0.55, (1.0, 0.94, 1.0), 1.1, 0.2)
_HOURS = (_CLEAR, _CLEAR, _FAIR, _FAIR, _GOLDEN, _ROSY, _HAZY, _GREY, _DUSK)


def drawn_weather(rng: np.random.Generator) -> Weather:
    """One of the hours, a little varied."""
    hour = _HOURS[int(rng.random() * len(_HOURS))]
    red, green, blue = (t * between(rng, 0.97, 1.03) for t in hour.tint)
    return Weather(
        varied(rng, hour.top, 0.08),
        varied(rng, hour.horizon, 0.04),
        hour.cloud,
        hour.cloudiness * between(rng, 0.5, 1.2),
        (red, green, blue),
        hour.gamma * between(rng, 0.93, 1.07),
        hour.shadow * between(rng, 0.8, 1.15),
        1 if rng.random() < 0.5 else -1,
    )


@functools.cache
def _cloud_noise() -> np.ndarray:
    """Tiling 1/f^1.7 noise, wide as clouds are: float32 [512, 512], mean 0, deviation 1."""
    rng = np.random.default_rng(20240711)
    frequency_y = np.fft.fftfreq(NOISE_SIDE)[:, None] * 1.0
    frequency_x = np.fft.rfftfreq(NOISE_SIDE)[None, :] * 2.2
    frequency = np.hypot(frequency_y, frequency_x)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((NOISE_SIDE, NOISE_SIDE))) / frequency**1.7
    noise = np.fft.irfft2(spectrum, s=(NOISE_SIDE, NOISE_SIDE))
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)


@functools.cache
def _grain() -> np.ndarray:
    """Tiling noise of a film's grain, finer and coarser mixed: float32 [512, 512, 3], sd 1."""
    rng = np.random.default_rng(20240712)
    fine = rng.standard_normal((NOISE_SIDE, NOISE_SIDE, 3))
    grey = rng.standard_normal((NOISE_SIDE, NOISE_SIDE, 1))
    coarse = (grey + np.roll(grey, 1, 0) + np.roll(grey, 1, 1) + np.roll(grey, (1, 1), (0, 1))) / 2
    grain = 0.5 * fine + 0.5 * grey + 0.5 * coarse
    return np.asarray(grain / grain.std(), dtype=np.float32)


def _crop(rng: np.random.Generator, noise: np.ndarray, height: int, width: int) -> np.ndarray:
    """A part of tiling noise, from anywhere."""
    y, x = rng.integers(0, NOISE_SIDE, size=2)
    rows = np.arange(y, y + height) % NOISE_SIDE
    columns = np.arange(x, x + width) % NOISE_SIDE
    return np.asarray(noise[rows[:, None], columns[None, :]])


def draw_sky(canvas: Canvas, rng: np.random.Generator, weather: Weather) -> None:
    """Fill the canvas with a gradient from top to horizon and with drifting clouds."""
    side = canvas.size
    height = np.linspace(0, 1.35, side, dtype=np.float32).clip(0, 1)[:, None, None] ** 0.9
    top, horizon = np.array(weather.top, np.float32), np.array(weather.horizon, np.float32)
    sky = top + (horizon - top) * height
    noise = _crop(rng, _cloud_noise(), side, side)[..., None]
    cover = np.clip((noise + 2.2 * weather.cloudiness - 1.6) * 1.1, 0, 1)
    # Thick parts of a cloud are greyer below.
    lit = np.array(weather.cloud, np.float32) * (1 - 0.09 * np.clip(noise - 0.7, 0, 1.2))
    sky = sky + (lit - sky) * cover * 0.85
    small = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    canvas.image.paste(small.resize(canvas.image.size, Image.Resampling.BILINEAR))


def photographed(canvas: Canvas, rng: np.random.Generator, weather: Weather) -> Image.Image:
    """The finished picture, RGB: shadows, tint, exposure, the lens's softness, grain."""
    side = canvas.size
    pixels = canvas.downsampled()
    # A shadow is lit by the sky alone, hence bluish.
    depth = (1 - canvas.light()) * np.array([1.0, 0.96, 0.86], np.float32)
    pixels *= (1 - depth) * np.array(weather.tint, np.float32)
    mottling = _crop(rng, _cloud_noise(), side, side)[..., None]
    rows = np.linspace(-1, 1, side, dtype=np.float32)
    vignette = between(rng, 0.02, 0.1) * (rows[:, None, None] ** 2 + rows[None, :, None] ** 2) / 2
    # The side that the sun stands on is brighter, the more the deeper its shadows.
    slant = 0.22 * weather.shadow * weather.sun * rows[None, :, None]
    pixels *= (1 + 0.02 * mottling) * (1 - vignette) * (1 + slant)
    pixels = 255 * (pixels.clip(0, 255) / 255) ** weather.gamma
    contrast = between(rng, 0.92, 1.08)
    pixels = 128 + (pixels - 128) * contrast
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(between(rng, 0.15, 0.5)))
    grain = _crop(rng, _grain(), side, side) * between(rng, 1.0, 3.2)
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
