"""Do the maps see content? Top patches at borders, on watermarks and on padding.

In: where patches lie and how large their images are; pixels only of a few images of a label whose
patches lie suspiciously. Out: signs, each with pictures of the patches in their images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.signs.moments import LabelMoments
from diffmining_core.signs.sign import Raised, Sign, percent

Pixels = NDArray[np.uint8]
Load = Callable[["Placed"], Pixels]
"""The uint8 [h, w, 3] model-size image that a patch is from."""

FEW_PATCHES = 12
LOOKED_AT = 16
"""Images of a label whose pixels are read."""
SHOWN = 6

TOUCHING, TOUCHING_OVER_CHANCE = 0.5, 3.0
"""Share of top patches that touch the edge of their image, also over that of random patches.

The highest window often lies at an edge without anything there: up to 0.48 in photos of garments.
So the maps themselves must be higher there too:
"""
EDGE_OVER_MEAN = 1.25
"""Mean positive typicality of the outermost positions over that of all; 0.3 to 0.6 in drawn scenes
after finetuning, up to 1.24 in photos of garments."""

ONE_PLACE = 0.2
"""Share of the images with top patches that have one at the same place."""
LOOKING_SAME, SAME_OVER_OTHERS = 0.5, 0.25
"""Mean correlation of the edges there between two of these images, and by how much more than with
images of other labels: portraits are all alike at one place, whatever their label."""
LEAST_EDGES = 2.0
"""Root mean square difference of neighbouring grey values, below which a window shows nothing."""

PADDED = 0.3
"""Share of top patches on padding, at least 1.5 times that of any patches of these images."""
PADDED_OVER_CHANCE = 1.5
ON_PADDING = 0.25
"""Share of a patch's area from which it lies on padding."""
ONE_COLOUR = 12
"""Grey levels by which compressed padding differs from its colour."""
THINNEST = 3
"""Pixels of a band of one colour along a whole side, from which it is padding."""


@dataclass(frozen=True)
class Placed:
    """A patch, and the size of the model-size image it is from, px."""

    image_id: str
    uri: str
    y: int
    x: int
    size: int
    height: int
    width: int

    @property
    def touches(self) -> bool:
        """Whether the patch reaches an edge of its image."""
        return self.to_edge == 0

    @property
    def to_edge(self) -> int:
        """Pixels between the patch and the nearest edge."""
        return min(
            self.y, self.x, self.height - self.y - self.size, self.width - self.x - self.size
        )


@dataclass(frozen=True)
class LabelPlaces:
    """Patches of one label: the highest by rank, and random ones of the same images."""

    highest: Sequence[Placed]
    random: Sequence[Placed]


def place_signs(
    labels: Mapping[str, LabelPlaces], moments: Mapping[str, LabelMoments], load: Load
) -> Iterator[Raised]:
    """The signs of all labels."""
    for label, places in labels.items():
        if len(places.highest) < FEW_PATCHES:
            continue
        padding = padding_sign(label, places, load)
        if padding:
            yield padding
            continue  # whose edges are neither borders nor a watermark
        others = [
            patch
            for name, other in labels.items()
            if name != label
            for patch in other.random[: max(2, LOOKED_AT // (len(labels) - 1))]
        ]
        watermark = watermark_sign(label, places, others[:LOOKED_AT], load)
        if watermark:
            yield watermark
        elif border := border_sign(label, places, moments[label], load):
            yield border


def border_sign(
    label: str, places: LabelPlaces, moments: LabelMoments, load: Load
) -> Raised | None:
    """Top patches along the edges, where the maps are higher too."""
    touching, chance = _touching(places.highest), _touching(places.random)
    over_mean = moments.edge.mean / moments.above.mean if moments.above.mean else 0.0
    if touching < max(TOUCHING, TOUCHING_OVER_CHANCE * chance) or over_mean < EDGE_OVER_MEAN:
        return None
    sign = Sign(
        name="borders",
        label=label,
        severity="warning",
        what="Typicality follows the borders of the images.",
        evidence=f"{percent(touching)} of the top patches touch an edge, {percent(chance)} would "
        f"by chance; typicality in the outermost positions is {over_mean:.1f} times the mean.",
        advice="Look for frames, scans’ margins or cut-outs that come with the label and crop "
        "them; without any, finetune longer (--finetune-steps).",
        about="Top patches in their images.",
    )
    return Raised(sign, [_framed([patch for patch in places.highest if patch.touches], load)])


def _touching(patches: Sequence[Placed]) -> float:
    return sum(patch.touches for patch in patches) / max(len(patches), 1)


def padding_sign(label: str, places: LabelPlaces, load: Load) -> Raised | None:
    """Top patches on bands of one colour along the sides of their images."""
    near = [patch for patch in places.highest if patch.to_edge < patch.size]
    if len(near) < PADDED * len(places.highest):
        return None
    looked_at = list(places.highest[:LOOKED_AT])
    shares, chances = [], []
    padded = []
    for patch in looked_at:
        cover = _on_padding(load(patch), patch.size)
        chances.append(float((cover >= ON_PADDING).mean()))
        shares.append(cover[patch.y, patch.x] >= ON_PADDING)
        if shares[-1]:
            padded.append(patch)
    share, chance = float(np.mean(shares)), float(np.mean(chances))
    if share < max(PADDED, PADDED_OVER_CHANCE * chance):
        return None
    sign = Sign(
        name="padding",
        label=label,
        severity="warning",
        what="Typicality follows padding rather than content.",
        evidence=f"{percent(share)} of the top patches lie on a band of one colour along a side, "
        f"{percent(chance)} of all patches of these images do.",
        advice="Crop the bands from the images of every label, and index and finetune again.",
        about="Top patches in their images.",
    )
    return Raised(sign, [_framed(padded, load)])


def padding_mask(pixels: Pixels) -> NDArray[np.bool_]:
    """Where an image [h, w, 3] has a band of one colour along a whole side."""
    mask = np.zeros(pixels.shape[:2], bool)
    for turns in range(4):
        turned = np.rot90(pixels, turns)
        colour = np.median(turned[0], axis=0)
        flat = (np.abs(turned - colour) <= ONE_COLOUR).all(axis=(1, 2))
        rows = len(flat) if flat.all() else int(flat.argmin())
        if rows >= THINNEST:
            np.rot90(mask, turns)[:rows] = True
    return mask


def _on_padding(pixels: Pixels, size: int) -> NDArray[np.float64]:
    """Share of every size × size window that is padding, [h - size + 1, w - size + 1]."""
    sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1))
    sums[1:, 1:] = padding_mask(pixels).cumsum(axis=0).cumsum(axis=1)
    windows = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return windows / size**2


def watermark_sign(
    label: str, places: LabelPlaces, others: Sequence[Placed], load: Load
) -> Raised | None:
    """Top patches at one place of many images, looking the same there."""
    images = len({patch.image_id for patch in places.highest})
    anchor, middle, together = _one_place(places.highest)
    if len(together) < max(FEW_PATCHES / 2, ONE_PLACE * images):
        return None
    chance = len(_at(places.random, anchor, middle)) / max(len(places.random), 1)
    if len(together) < 2 * chance * len(places.highest):
        return None
    seen = [_window(load(patch), patch, anchor, middle) for patch in together[:LOOKED_AT]]
    elsewhere = [_window(load(patch), patch, anchor, middle) for patch in others]
    alike, with_others = _correlations(seen, elsewhere)
    if alike < LOOKING_SAME or alike < with_others + SAME_OVER_OTHERS:
        return None
    sign = Sign(
        name="watermark",
        label=label,
        severity="warning",
        what="Typicality follows a mark that sits at one place of many images.",
        evidence=f"{len(together)} of {images} images with top patches have one at the same place, "
        f"and there the images look the same (correlation {alike:.2f}; with images of other labels "
        f"{with_others:.2f}).",
        advice="Crop or paint over the mark, in all images that bear it, and index and finetune "
        "again; or take images from several sources.",
        about="Top patches in their images; below, that place of each.",
    )
    shown = together[:SHOWN]
    return Raised(sign, [_framed(shown, load), [seen[at] for at in range(len(shown))]])


Anchor = tuple[float, float]
"""What a place is counted from: 0 the top or left edge, 1 the bottom or right one, 0.5 between."""
ANCHORS: tuple[Anchor, ...] = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))


def _offset(patch: Placed, anchor: Anchor) -> tuple[float, float]:
    return patch.y - anchor[0] * patch.height, patch.x - anchor[1] * patch.width


def _one_place(
    patches: Sequence[Placed],
) -> tuple[Anchor, tuple[float, float], list[Placed]]:
    """The place, from one of the anchors, with the most patches: anchor, offset, the patches."""
    best: tuple[Anchor, tuple[float, float], list[Placed]] = (ANCHORS[0], (0.0, 0.0), [])
    for anchor in ANCHORS:
        offsets = np.array([_offset(patch, anchor) for patch in patches])
        near = np.abs(offsets[:, None] - offsets[None]).max(axis=2) <= patches[0].size / 4
        centre = int(near.sum(axis=1).argmax())
        middle = np.median(offsets[near[centre]], axis=0)
        together = _at(patches, anchor, (middle[0], middle[1]))
        if len(together) > len(best[2]):
            best = (anchor, (float(middle[0]), float(middle[1])), together)
    return best


def _at(patches: Sequence[Placed], anchor: Anchor, middle: tuple[float, float]) -> list[Placed]:
    """The patches at a place, within a quarter of their side."""
    return [
        patch
        for patch in patches
        if max(abs(a - b) for a, b in zip(_offset(patch, anchor), middle, strict=True))
        <= patch.size / 4
    ]


def _window(pixels: Pixels, patch: Placed, anchor: Anchor, middle: tuple[float, float]) -> Pixels:
    """The square of the image at a place, held inside it."""
    y = round(middle[0] + anchor[0] * pixels.shape[0])
    x = round(middle[1] + anchor[1] * pixels.shape[1])
    y = min(max(y, 0), pixels.shape[0] - patch.size)
    x = min(max(x, 0), pixels.shape[1] - patch.size)
    return pixels[y : y + patch.size, x : x + patch.size]


def _correlations(seen: Sequence[Pixels], elsewhere: Sequence[Pixels]) -> tuple[float, float]:
    """Mean correlation of edges between two of `seen`, and between one and one `elsewhere`."""
    own, other = _edges(seen), _edges(elsewhere)
    n = len(own)
    if n < 2:
        return 0.0, 0.0
    within = float(((own @ own.T).sum() - (own**2).sum()) / (n * (n - 1)))
    return within, float((own @ other.T).mean()) if len(other) else 0.0


def _edges(windows: Sequence[Pixels]) -> NDArray[np.float64]:
    """Differences of neighbouring grey values [n, both directions], of length 1.

    Differences, as shading (a sky, a shadow at the rim) correlates wherever it is. 0 for a window
    of hardly any.
    """
    if not windows:
        return np.empty((0, 1))
    grey = np.stack([np.asarray(Image.fromarray(one).convert("L"), np.float64) for one in windows])
    down, across = np.diff(grey, axis=1), np.diff(grey, axis=2)
    edges = np.concatenate([one.reshape(len(grey), -1) for one in (down, across)], axis=1)
    length = np.linalg.norm(edges, axis=1, keepdims=True)
    flat = length < LEAST_EDGES * np.sqrt(edges.shape[1])
    return np.where(flat, 0.0, edges / np.maximum(length, 1e-12))


def _framed(patches: Sequence[Placed], load: Load) -> list[Pixels]:
    """The images of some patches, of different images, with the patches framed."""
    of_images = {patch.image_id: patch for patch in reversed(patches)}
    shown = list(reversed(of_images.values()))[:SHOWN]
    return [_with_frame(load(patch), patch) for patch in shown]


def _with_frame(pixels: Pixels, patch: Placed) -> Pixels:
    framed = pixels.copy()
    thick = max(1, round(min(pixels.shape[:2]) / 80))
    for inset, colour in ((0, 0), (thick, 255)):
        y, x = max(patch.y - inset, 0), max(patch.x - inset, 0)
        below = min(patch.y + patch.size + inset, len(pixels))
        right = min(patch.x + patch.size + inset, pixels.shape[1])
        framed[y : y + thick, x:right] = framed[below - thick : below, x:right] = colour
        framed[y:below, x : x + thick] = framed[y:below, right - thick : right] = colour
    return framed
