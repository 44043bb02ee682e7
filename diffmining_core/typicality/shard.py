"""Typicality of every row of a dataset shard, batched across images of one latent shape.

A row is an image under one label; the rows of one image share its pixels, its latents and its null
predictions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from diffmining_core.errors import ImageError
from diffmining_core.images.pixels import load_pixels, resized_hw
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.denoiser import rows_at_once
from diffmining_core.models.lanes import in_lanes
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.draws import PAIRED, Draws, draw, sampled_latents
from diffmining_core.typicality.estimator import typicality

Map = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

READERS = 4
"""Threads that read and decode the images of a batch."""


class RowMap(NamedTuple):
    """What is measured of one row: the estimator's maps, float32 [h, w], and null loss."""

    mean: Map
    m2: Map
    null_loss: float
    window_m2: Map | None


@dataclass(frozen=True)
class TypicalityOptions:
    """What decides a typicality map, beside the image, its label and the model."""

    prompts: PromptTemplate
    size: int
    """Shorter side of the model-size image in pixels."""
    draws: int
    """N, the number of (noise, timestep) pairs."""
    t_range: tuple[float, float]
    """Timesteps drawn from, as a share of the 1000 training steps."""
    seed: int
    """Of the draws and of each image's posterior sample."""
    draws_seed: int | None = None
    """Of the draws, where it is another than that of the images."""
    fixed: str | None = None
    """What all draws share: `noise`, `timestep`, or nothing."""
    spread: str = PAIRED
    """How the draws are spread (see `typicality.draws`)."""
    window: int | None = None
    """Side of the windows whose moments are wanted too, in latent positions."""
    after: int = 0
    """Draws that an earlier round has taken; only those after them are."""


def shard_typicality(
    pipeline: Pipeline,
    images: Sequence[ShardImage],
    options: TypicalityOptions,
    batch_size: int = 0,
    on_forwards: Callable[[int], None] = lambda forwards: None,
) -> tuple[dict[int, RowMap], dict[int, str]]:
    """Maps by the row's place in `images`, and by place why a row is set aside.

    `batch_size` images are taken at a time, and at most twice as many go through the UNet at once:
    each under the null prompt and, for each of its rows, under that one's label. 0 leaves it to
    the device. An image that nobody has opened before (`declared`) and that proves unusable is set
    aside with the reason, all its rows; any other that cannot be read has changed since, and raises
    ImageError. InputError for a map that is not finite.
    """
    null_embeds = pipeline.embed_prompts([options.prompts.null])
    label_embeds = {
        label: pipeline.embed_prompts([options.prompts.of(label)])[0]
        for label in sorted({image.label for image in images})
    }

    def prepare(batch: _Batch) -> _Ready:
        pixels, unusable = _read_batch(images, list(batch.rows), options.size, batch.hw)
        latents = None
        if pixels:
            image_ids = [images[first].image_id for first in pixels]
            latents = sampled_latents(
                pipeline, np.stack(list(pixels.values())), image_ids, options.seed
            )
        return _Ready(batch, list(pixels), latents, unusable)

    def measure(ready: _Ready) -> Callable[[], tuple[dict[int, RowMap], dict[int, str]]]:
        of_image = ready.batch.rows
        bad = {row: why for first, why in ready.unusable.items() for row in of_image[first]}
        if ready.latents is None:
            return lambda: ({}, bad)
        rows = [row for first in ready.usable for row in of_image[first]]
        estimate = typicality(
            pipeline,
            ready.latents,
            torch.stack([label_embeds[images[row].label] for row in rows]),
            torch.tensor([i for i, first in enumerate(ready.usable) for _ in of_image[first]]),
            null_embeds,
            ready.batch.draws,
            heard,
            at_once=2 * batch_size or None,
            window=options.window,
        )

        def fetch() -> tuple[dict[int, RowMap], dict[int, str]]:
            ids = ", ".join(images[first].image_id for first in ready.usable)
            pipeline.check_finite(estimate.mean, f"the typicality of {ids}")
            mean, m2, null_loss = (part.cpu().numpy() for part in estimate[:3])
            windows = [None] * len(rows)
            if estimate.window_m2 is not None:
                windows = list(estimate.window_m2.cpu().numpy())
            found = map(RowMap, mean, m2, null_loss.tolist(), windows)
            return dict(zip(rows, found, strict=True)), bad

        return fetch

    lock = Lock()

    def heard(forwards: int) -> None:
        with lock:
            on_forwards(forwards)

    maps: dict[int, RowMap] = {}
    set_aside: dict[int, str] = {}
    batches = _batches(pipeline, images, options, batch_size)
    for measured, unusable in in_lanes(pipeline.device, batches, prepare, measure):
        maps |= measured
        set_aside |= unusable
    return maps, set_aside


class _Batch(NamedTuple):
    """Images of one shape that are measured together."""

    hw: tuple[int, int]
    rows: dict[int, list[int]]
    """Each image's rows by the first of them."""
    draws: Draws


class _Ready(NamedTuple):
    """A batch whose images lie on the device."""

    batch: _Batch
    usable: list[int]
    """The first rows of the images that could be read."""
    latents: torch.Tensor | None
    """[usable, channels, h, w]; None where there is none."""
    unusable: dict[int, str]


def _batches(
    pipeline: Pipeline, images: Sequence[ShardImage], options: TypicalityOptions, batch_size: int
) -> Iterator[_Batch]:
    seed = options.seed if options.draws_seed is None else options.draws_seed
    channels = int(pipeline.unet.config.in_channels)
    for hw, groups in by_shape(rows_of_images(images), images, options.size):
        latent_shape = (channels, hw[0] // pipeline.cell, hw[1] // pipeline.cell)
        device = pipeline.device
        count, t_range = options.draws, options.t_range
        draws = draw(seed, latent_shape, count, t_range, options.fixed, device, options.spread)
        draws = draws.since(options.after)
        forwards = sum(1 + len(rows) for rows in groups) * len(draws)
        pipeline.compiled.plan(latent_shape, forwards)
        at_once = batch_size or max(1, rows_at_once(pipeline, latent_shape) // 2)
        for start in range(0, len(groups), at_once):
            yield _Batch(hw, {rows[0]: rows for rows in groups[start : start + at_once]}, draws)


def rows_of_images(images: Sequence[ShardImage]) -> list[list[int]]:
    """The places in `images` of each image's rows, one list per image, in order of the first."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        rows[image.image_id, image.uri].append(place)
    return list(rows.values())


def _read_batch(
    images: Sequence[ShardImage], batch: Sequence[int], size: int, hw: tuple[int, int]
) -> tuple[dict[int, Pixels], dict[int, str]]:
    """By place, the model-size pixels, and why one that nobody had opened cannot be used."""

    def read(place: int) -> Pixels | ImageError:
        image = images[place]
        try:
            pixels = load_pixels(image.uri, size, image.image_id)
            if pixels.shape[:2] != hw:
                raise ImageError(
                    f"{image.uri}: it is not {image.width} × {image.height} px, as the dataset's "
                    "manifest says"
                )
        except ImageError as error:
            if not image.declared:
                raise
            return error
        return pixels

    with ThreadPoolExecutor(READERS) as pool:
        read_ones = dict(zip(batch, pool.map(read, batch), strict=True))
    return (
        {place: one for place, one in read_ones.items() if not isinstance(one, ImageError)},
        {place: str(one) for place, one in read_ones.items() if isinstance(one, ImageError)},
    )


def by_shape(
    groups: Sequence[list[int]], images: Sequence[ShardImage], size: int
) -> Iterator[tuple[tuple[int, int], list[list[int]]]]:
    """The images, each as its rows, of each model-size shape (h, w)."""

    def shape(rows: list[int]) -> tuple[int, int]:
        return resized_hw(images[rows[0]].width, images[rows[0]].height, size)

    for hw, of_shape in groupby(sorted(groups, key=shape), key=shape):
        yield hw, list(of_shape)
