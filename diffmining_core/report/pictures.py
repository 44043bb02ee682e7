"""The picture files of the site, written one label at a time.

In: the patches a label's page shows. Out: their pixels, each source image as WebP and a typicality
overlay per image, with only a handful of images in memory at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.ahead import in_order
from diffmining_core.report import figures
from diffmining_core.report.figures import Tile
from diffmining_core.report.overlays import PIXELS_PER_CELL, label_scale, overlay
from diffmining_core.report.ranking import Ranked
from diffmining_core.report.source import SHOWN_PER_CLUSTER, STRIP_REACH, Patch, SiteSource

Place = tuple[str, int, int, int]
Maps = dict[str, NDArray[np.float32]]

_DARKEST, _BRIGHTEST = 30, 225  # mean grey of a patch that a strip shows
_IMAGE_TILE = 128  # px of a whole image in a row


@dataclass(frozen=True)
class PictureSizes:
    """How large and how many the pictures of a site are; qualities are from 0 to 100.

    per_cluster: patches shown. tile: px of a patch at most. source: px of the longer side of a
    source image at most, suffix its kind. overlay: px of one position of a map. figures: whether
    each label has them, which are large.
    """

    per_cluster: int
    tile: int
    tile_quality: int
    source: int
    source_quality: int
    suffix: str
    overlay: float
    overlay_quality: int
    figures: bool


_SIZES = (
    (
        24,
        PictureSizes(
            SHOWN_PER_CLUSTER, 128, 88, 768, 82, ".webp", PIXELS_PER_CELL, 60, figures=True
        ),
    ),
    (100, PictureSizes(8, 96, 80, 448, 60, ".webp", 2, 50, figures=True)),
)
# AVIF takes two thirds of WebP's bytes, and as long again to write.
_SMALL = PictureSizes(6, 64, 62, 224, 33, ".avif", 0.5, 40, figures=False)


def picture_sizes(labels: int) -> PictureSizes:
    """The more labels, the smaller their pictures: a site of 365 stays below 500 MB.

    `python -m benchmarks.gallery` measures it.
    """
    return next((sizes for most, sizes in _SIZES if labels <= most), _SMALL)


@dataclass(frozen=True)
class ShownImage:
    """A source image on a label's page; paths are relative to the site, sizes model-size px."""

    image_id: str
    name: str
    uri: str
    height: int
    width: int
    source: str
    overlay: str
    overlay_before: str | None


@dataclass(frozen=True)
class LabelPictures:
    """What a label's page shows: images by id, and the |typicality| where the colours end."""

    images: dict[str, ShownImage]
    scale: float


def strip_tiles(source: SiteSource, ranked: Sequence[Patch], count: int) -> dict[Patch, Tile]:
    """The first `count` patches by rank that are neither near black nor near white."""
    shown: dict[Patch, Tile] = {}

    def read(patch: Patch) -> Tile:
        return crop(source.load_pixels(patch.uri), patch)

    for patch, tile in in_order(read, ranked[:STRIP_REACH]):
        if len(shown) == count:
            break
        grey = float(np.asarray(Image.fromarray(tile).convert("L")).mean())
        if _DARKEST <= grey <= _BRIGHTEST:
            shown[patch] = tile
    return shown


def image_tiles(source: SiteSource, ranked: Sequence[Ranked]) -> dict[Patch, Tile]:
    """The middle square of each of these images, in order."""

    def read(image: Ranked) -> tuple[Patch, Tile]:
        typicality, image_id, uri = image
        pixels = source.load_pixels(uri)
        height, width = pixels.shape[:2]
        side = min(height, width)
        y, x = (height - side) // 2, (width - side) // 2
        patch = Patch(image_id, uri, y, x, side, typicality, is_image=True)
        return patch, figures.fitted(crop(pixels, patch), min(side, _IMAGE_TILE))

    return dict(shown for _, shown in in_order(read, ranked))


def write_label_pictures(
    source: SiteSource,
    label: str,
    slug: str,
    patches: Sequence[Patch],
    tiles: dict[Place, Tile],
    folder: Path,
    sizes: PictureSizes,
) -> LabelPictures:
    """Write the source image and overlays of every patch; add the missing patches to `tiles`."""
    by_image: dict[str, list[Patch]] = {}
    for patch in patches:
        by_image.setdefault(patch.image_id, []).append(patch)
    after = {image_id: source.typicality(image_id, label) for image_id in by_image}
    before = _maps_before(source, label, by_image)
    scale = label_scale([*after.values(), *before.values()])
    for part in ("images", f"overlays/{slug}"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def read(of_image: list[Patch]) -> NDArray[np.uint8]:
        pixels = source.load_pixels(of_image[0].uri)
        _write_source(pixels, folder / _source_path(of_image[0].image_id, sizes), sizes)
        return pixels

    images = {}
    for of_image, pixels in in_order(read, by_image.values()):
        first = of_image[0]
        for patch in of_image:
            if patch.is_image:  # its picture is the source image
                continue
            tiles.setdefault(patch.place, crop(pixels, patch).copy())
        stem = f"overlays/{slug}/{_file_stem(first.image_id)}"
        overlays = {"": after.get(first.image_id), "-before": before.get(first.image_id)}
        for suffix, one in overlays.items():
            if one is not None:
                drawn = overlay(one, scale, sizes.overlay)
                save_webp(drawn, folder / f"{stem}{suffix}.webp", sizes.overlay_quality)
        images[first.image_id] = ShownImage(
            image_id=first.image_id,
            name=first.image_name,
            uri=first.uri,
            height=pixels.shape[0],
            width=pixels.shape[1],
            source=_source_path(first.image_id, sizes),
            overlay=f"{stem}.webp",
            overlay_before=f"{stem}-before.webp" if first.image_id in before else None,
        )
    return LabelPictures(images, scale)


def crop(pixels: NDArray[np.uint8], patch: Patch) -> Tile:
    """The patch's pixels, uint8 [size, size, 3]."""
    tile = pixels[patch.y : patch.y + patch.size, patch.x : patch.x + patch.size]
    if tile.shape[:2] != (patch.size, patch.size):
        height, width = pixels.shape[:2]
        raise InputError(
            f"image {patch.uri} is {width}×{height} px now, and the {patch.size}-px patch mined "
            f"from it at y={patch.y}, x={patch.x} lies outside: it has changed, so index it again."
        )
    return tile


def save_sprite(image: Image.Image, path: Path, quality: int = 88) -> None:
    """As WebP; at 88 small patches stay crisp."""
    save_webp(image, path, quality)


def _maps_before(source: SiteSource, label: str, image_ids: Iterable[str]) -> Maps:
    if source.typicality_before is None:
        return {}
    found = {image_id: source.typicality_before(image_id, label) for image_id in image_ids}
    return {image_id: one for image_id, one in found.items() if one is not None}


def _write_source(pixels: NDArray[np.uint8], path: Path, sizes: PictureSizes) -> None:
    if path.exists():  # another label's page shows it too
        return
    picture = Image.fromarray(pixels)
    picture.thumbnail((sizes.source, sizes.source), Image.Resampling.LANCZOS)
    if sizes.suffix == ".avif":
        picture.save(path, "AVIF", quality=sizes.source_quality, speed=8)
    else:
        save_webp(picture, path, sizes.source_quality)


def save_webp(image: Image.Image, path: Path, quality: int) -> None:
    """As WebP, at a quality from 0 to 100."""
    image.save(path, "WEBP", quality=quality, alpha_quality=quality, method=3)


def _source_path(image_id: str, sizes: PictureSizes) -> str:
    return f"images/{_file_stem(image_id)}{sizes.suffix}"


def _file_stem(image_id: str) -> str:
    """The id itself where it is hexadecimal, as the index makes it, else its hash."""
    if re.fullmatch(r"[0-9a-f]{8,64}", image_id):
        return image_id
    return hashlib.sha256(image_id.encode()).hexdigest()[:32]
