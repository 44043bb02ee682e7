"""Typicality of every image of a dataset shard, batched across images of one latent shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from diffmining_core.errors import ImageError
from diffmining_core.images.pixels import load_pixels, resized_hw
from diffmining_core.images.shards import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.draws import draw, sample_posterior
from diffmining_core.typicality.estimator import typicality

Map = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

READERS = 4
"""Threads that read and decode the images of a batch."""


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


def shard_typicality(
    pipeline: Pipeline,
    images: Sequence[ShardImage],
    options: TypicalityOptions,
    batch_size: int,
    on_forwards: Callable[[int], None] = lambda forwards: None,
) -> tuple[dict[int, tuple[Map, Map]], dict[int, str]]:
    """(mean, m2) float32 [h, w] by the image's place in `images`, and by place what is set aside.

    `batch_size` images go through the UNet at a time, each under its label and the null prompt. An
    image that nobody has opened before (`declared`) and that proves unusable is set aside with the
    reason; any other that cannot be read has changed since, and raises ImageError.
    """
    null_embeds = pipeline.embed_prompts([options.prompts.null])
    label_embeds = {
        label: pipeline.embed_prompts([options.prompts.of(label)])[0]
        for label in sorted({image.label for image in images})
    }
    maps: dict[int, tuple[Map, Map]] = {}
    set_aside: dict[int, str] = {}
    for hw, places in _by_shape(images, options.size):
        latent_shape = (
            int(pipeline.unet.config.in_channels),
            hw[0] // pipeline.cell,
            hw[1] // pipeline.cell,
        )
        draws = draw(options.seed, latent_shape, options.draws, options.t_range)
        for batch in _batches(places, batch_size):
            pixels = _read_batch(images, batch, options.size, hw, set_aside)
            if not pixels:
                continue
            members = [images[place] for place in pixels]
            latents = sampled_latents(
                pipeline,
                list(pixels.values()),
                [image.image_id for image in members],
                options.seed,
            )
            embeds = torch.stack([label_embeds[image.label] for image in members])
            means, m2s = typicality(pipeline, latents, embeds, null_embeds, draws, on_forwards)
            for place, mean, m2 in zip(pixels, means.cpu().numpy(), m2s.cpu().numpy(), strict=True):
                maps[place] = (mean, m2)
    return maps, set_aside


def sampled_latents(
    pipeline: Pipeline, pixels: Sequence[Pixels], image_ids: Sequence[str], seed: int
) -> torch.Tensor:
    """One VAE posterior sample float32 [n, channels, h, w] of uint8 [h, w, 3] of one shape."""
    pixel_values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    mean, std = pipeline.encode_posterior(pixel_values)
    return sample_posterior(mean, std, seed, list(image_ids))


def _read_batch(
    images: Sequence[ShardImage],
    batch: Sequence[int],
    size: int,
    hw: tuple[int, int],
    set_aside: dict[int, str],
) -> dict[int, Pixels]:
    """The model-size pixels of a batch by place; what nobody had opened may be set aside."""

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
    set_aside.update(
        (place, str(error)) for place, error in read_ones.items() if isinstance(error, ImageError)
    )
    return {
        place: pixels for place, pixels in read_ones.items() if not isinstance(pixels, ImageError)
    }


def _by_shape(
    images: Sequence[ShardImage], size: int
) -> Iterator[tuple[tuple[int, int], Iterable[int]]]:
    """Places of the images of each model-size shape (h, w)."""

    def shape(place: int) -> tuple[int, int]:
        return resized_hw(images[place].width, images[place].height, size)

    for hw, places in groupby(sorted(range(len(images)), key=shape), key=shape):
        yield hw, list(places)


def _batches(places: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    places = list(places)
    for start in range(0, len(places), batch_size):
        yield places[start : start + batch_size]
