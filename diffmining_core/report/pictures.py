"""The picture files of the site, written one label at a time.

In: the patches a label's page shows. Out: their pixels, each source image as WebP and a typicality
overlay per image, with only a handful of images in memory at once.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.report.figures import Tile
from diffmining_core.report.overlays import label_scale, overlay
from diffmining_core.report.source import Patch, SiteSource

Place = tuple[str, int, int, int]
Maps = dict[str, NDArray[np.float32]]

_SOURCE_SIDE = 768  # px, the longer side of a source image on the page at most
_THREADS = 4
_AHEAD = 8  # images decoded before they are asked for
_DARKEST, _BRIGHTEST = 30, 225  # mean grey of a patch that a strip shows
_TRIED_PER_SHOWN = 8

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ShownImage:
    """A source image on a label's page; paths are relative to the site, sizes model-size px."""

    image_id: str
    name: str
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

    for patch, tile in _in_order(read, ranked[: count * _TRIED_PER_SHOWN]):
        if len(shown) == count:
            break
        grey = float(np.asarray(Image.fromarray(tile).convert("L")).mean())
        if _DARKEST <= grey <= _BRIGHTEST:
            shown[patch] = tile
    return shown


def write_label_pictures(
    source: SiteSource,
    label: str,
    slug: str,
    patches: Sequence[Patch],
    tiles: dict[Place, Tile],
    folder: Path,
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
        _write_source(pixels, folder / _source_path(of_image[0].image_id))
        return pixels

    images = {}
    for of_image, pixels in _in_order(read, by_image.values()):
        first = of_image[0]
        for patch in of_image:
            tiles.setdefault(patch.place, crop(pixels, patch).copy())
        stem = f"overlays/{slug}/{_file_stem(first.image_id)}"
        overlays = {"": after.get(first.image_id), "-before": before.get(first.image_id)}
        for suffix, one in overlays.items():
            if one is not None:
                save_webp(overlay(one, scale), folder / f"{stem}{suffix}.webp", quality=60)
        images[first.image_id] = ShownImage(
            image_id=first.image_id,
            name=first.image_name,
            height=pixels.shape[0],
            width=pixels.shape[1],
            source=_source_path(first.image_id),
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


def save_sprite(image: Image.Image, path: Path) -> None:
    """As WebP, at a quality that keeps small patches crisp."""
    save_webp(image, path, quality=88)


def _maps_before(source: SiteSource, label: str, image_ids: Iterable[str]) -> Maps:
    if source.typicality_before is None:
        return {}
    found = {image_id: source.typicality_before(image_id, label) for image_id in image_ids}
    return {image_id: one for image_id, one in found.items() if one is not None}


def _write_source(pixels: NDArray[np.uint8], path: Path) -> None:
    if path.exists():  # another label's page shows it too
        return
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SOURCE_SIDE, _SOURCE_SIDE), Image.Resampling.LANCZOS)
    save_webp(picture, path, quality=82)


def save_webp(image: Image.Image, path: Path, quality: int) -> None:
    """As WebP, at a quality from 0 to 100."""
    image.save(path, "WEBP", quality=quality, alpha_quality=quality, method=3)


def _source_path(image_id: str) -> str:
    return f"images/{_file_stem(image_id)}.webp"


def _file_stem(image_id: str) -> str:
    """The id itself where it is hexadecimal, as the index makes it, else its hash."""
    if re.fullmatch(r"[0-9a-f]{8,64}", image_id):
        return image_id
    return hashlib.sha256(image_id.encode()).hexdigest()[:32]


def _in_order(
    read: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with its result, in order, read ahead on threads but only a few at a time."""
    pending: deque[tuple[_Item, Future[_Result]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for item in items:
            pending.append((item, pool.submit(read, item)))
            if len(pending) > _AHEAD:
                done, result = pending.popleft()
                yield done, result.result()
        while pending:
            done, result = pending.popleft()
            yield done, result.result()
