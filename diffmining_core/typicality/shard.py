"""Typicality of every image of a dataset shard, batched across images of one latent shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from diffmining_core.images.pixels import load_pixels, resized_hw
from diffmining_core.images.shards import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.draws import draw, sample_posterior
from diffmining_core.typicality.estimator import typicality

Map = npt.NDArray[np.float32]


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
) -> list[tuple[Map, Map]]:
    """(mean, m2) float32 [h, w] of each image, in the order of `images`.

    `batch_size` images go through the UNet at a time, each under its label and the null prompt.
    """
    null_embeds = pipeline.embed_prompts([options.prompts.null])
    label_embeds = {
        label: pipeline.embed_prompts([options.prompts.of(label)])[0]
        for label in sorted({image.label for image in images})
    }
    maps: dict[int, tuple[Map, Map]] = {}
    for hw, places in _by_shape(images, options.size):
        latent_shape = (
            int(pipeline.unet.config.in_channels),
            hw[0] // pipeline.cell,
            hw[1] // pipeline.cell,
        )
        draws = draw(options.seed, latent_shape, options.draws, options.t_range)
        for batch in _batches(places, batch_size):
            members = [images[place] for place in batch]
            latents = sampled_latents(pipeline, members, options.size, options.seed)
            embeds = torch.stack([label_embeds[image.label] for image in members])
            means, m2s = typicality(pipeline, latents, embeds, null_embeds, draws, on_forwards)
            for place, mean, m2 in zip(batch, means.cpu().numpy(), m2s.cpu().numpy(), strict=True):
                maps[place] = (mean, m2)
    return [maps[place] for place in range(len(images))]


def sampled_latents(
    pipeline: Pipeline, images: Sequence[ShardImage], size: int, seed: int
) -> torch.Tensor:
    """One VAE posterior sample float32 [n, channels, h, w] of images of one shape."""
    with ThreadPoolExecutor(4) as pool:
        pixels = list(pool.map(lambda image: load_pixels(image.uri, size), images))
    pixel_values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    mean, std = pipeline.encode_posterior(pixel_values)
    return sample_posterior(mean, std, seed, [image.image_id for image in images])


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
