"""Every image of a dataset shard redrawn under other labels, batched across images of one shape.

An image of several labels is redrawn from the first, under those that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.pixels import load_pixels, resized_size
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.denoiser import Denoiser, rows_at_once
from diffmining_core.models.fetching import first_line
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.translation.inversion import invert, sample, sampling_timesteps
from diffmining_core.translation.plug_and_play import FEATURE_SHARE, Targets, redraw
from diffmining_core.typicality.draws import TRAIN_TIMESTEPS
from diffmining_core.typicality.shard import by_shape, rows_of_images

Pixels = npt.NDArray[np.uint8]
Start: TypeAlias = Literal["inverted", "official"]
"""The latent that sampling begins with: the one inverted to its first timestep, as its first step
expects, or to the last of all timesteps, as in the released research code."""


@dataclass(frozen=True)
class TranslationOptions:
    """What decides a redrawn image, beside its source, the labels and the model."""

    prompts: PromptTemplate
    size: int
    """Shorter side of the model-size image in pixels."""
    steps: int
    """Of DDIM sampling; divides 1000."""
    inversion_stride: int
    """Timesteps between those of the inversion; divides 1000 / steps. 1 is exact."""
    start: Start
    guidance: float

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> TranslationOptions:
        """As they stand among a stage's options."""
        names = ("size", "steps", "inversion_stride", "start", "guidance")
        prompts = PromptTemplate.from_options(options)
        return cls(prompts, **{name: options[name] for name in names})

    @property
    def inversion_timesteps(self) -> list[int]:
        """1, 1 + stride … up to that which sampling begins with."""
        first = sampling_timesteps(self.steps)[0]
        last = first if self.start == "inverted" else TRAIN_TIMESTEPS - 1
        return list(range(1, last + 1, self.inversion_stride))


class Redrawn(NamedTuple):
    """An image under another label."""

    place: int
    """Of the source's first row among the images."""
    label: str
    pixels: Pixels
    """uint8 [height, width, 3], of the original image's size."""


class Reconstructed(NamedTuple):
    """How well a source came back when it was sampled under its own label, as it was inverted."""

    place: int
    psnr: float
    """Peak signal-to-noise ratio in dB, against the source as the VAE decodes it."""


def forwards_of(options: TranslationOptions, targets: int) -> int:
    """UNet forwards that one image with so many targets takes, where all fit into one batch."""
    carried = sum(step < FEATURE_SHARE * options.steps for step in range(options.steps))
    reconstruction = options.steps if options.inversion_stride > 1 else 0
    return len(options.inversion_timesteps) + reconstruction + carried + 2 * targets * options.steps


def shard_translations(
    pipeline: Pipeline,
    images: Sequence[ShardImage],
    targets: Sequence[str],
    options: TranslationOptions,
    batch_size: int,
    on_forwards: Callable[[int], None] = lambda forwards: None,
) -> Iterator[Redrawn | Reconstructed]:
    """Every image under every target that is not a label of its own, in one order always.

    `batch_size` images are inverted at a time, and at most twice as many rows go through the UNet
    at once while they are redrawn, half as many where memory runs out; 0 leaves it to the device.
    An image whose targets do not fit is its own source more than once. Where the inversion is
    shortened, each image also says how well it came back. ImageError for an image that cannot be
    read, InputError for one that cannot be redrawn in the UNet's precision.
    """
    null_embeds = pipeline.embed_prompts([options.prompts.null])
    label_embeds = {
        label: pipeline.embed_prompts([options.prompts.of(label)])[0]
        for label in sorted({*targets, *(image.label for image in images)})
    }
    timesteps = sampling_timesteps(options.steps)
    upwards = options.inversion_timesteps
    for hw, groups in by_shape(rows_of_images(images), images, options.size):
        latent_shape = (int(pipeline.unet.config.in_channels), *(n // pipeline.cell for n in hw))
        at_once = batch_size or max(1, rows_at_once(pipeline, latent_shape) // 2)
        for first in range(0, len(groups), at_once):
            batch = groups[first : first + at_once]
            sources = [images[rows[0]] for rows in batch]
            wanted = [_targets_of(images, rows, targets) for rows in batch]
            latents = _mean_latents(pipeline, sources, options.size)
            source_embeds = torch.stack([label_embeds[source.label] for source in sources])
            inverted = invert(
                pipeline, latents, source_embeds, upwards, [*timesteps, upwards[-1]], on_forwards
            )
            if options.inversion_stride > 1:
                psnr = _reconstruction(
                    pipeline, latents, inverted, source_embeds, timesteps, on_forwards
                )
                yield from (
                    Reconstructed(rows[0], db) for rows, db in zip(batch, psnr, strict=True)
                )

            def redraw_pairs(
                pairs: Sequence[tuple[int, str]],
                inverted: dict[int, torch.Tensor] = inverted,
            ) -> torch.Tensor:
                some = sorted({source for source, _ in pairs})
                return redraw(
                    pipeline,
                    {t: inverted[t][some] for t in timesteps},
                    inverted[upwards[-1]][some],
                    Targets(
                        torch.tensor([some.index(source) for source, _ in pairs]),
                        torch.stack([label_embeds[label] for _, label in pairs]),
                    ),
                    null_embeds,
                    options.steps,
                    options.guidance,
                    on_forwards,
                )

            for pairs in _packed(wanted, 2 * at_once):
                redrawn = _in_halves(redraw_pairs, pairs)
                for (source, label), one in zip(pairs, redrawn, strict=True):
                    image = sources[source]
                    pipeline.check_finite(one, f"{image.image_id} redrawn as {label}")
                    pixels = pipeline.decode(one[None])[0]
                    yield Redrawn(
                        batch[source][0],
                        label,
                        original_size(pixels, image.width, image.height, options.size),
                    )


def original_size(pixels: Pixels, width: int, height: int, size: int) -> Pixels:
    """A model-size image uint8 [h, w, 3] as one of width × height pixels.

    Its model-size image is at the same place again: the up to 7 pixels that were cropped off at the
    right and at the bottom repeat the last ones.
    """
    across, down = resized_size(width, height, size)
    h, w, _ = pixels.shape
    whole = np.pad(pixels, ((0, down - h), (0, across - w), (0, 0)), mode="edge")
    if (across, down) == (width, height):
        return whole
    resized = Image.fromarray(whole).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(resized)


def _targets_of(
    images: Sequence[ShardImage], rows: Sequence[int], targets: Sequence[str]
) -> list[str]:
    own = {images[row].label for row in rows}
    return [label for label in targets if label not in own]


def _mean_latents(pipeline: Pipeline, sources: Sequence[ShardImage], size: int) -> torch.Tensor:
    """The VAE's means float32 [n, channels, h, w], as inversion wants them: no noise of its own."""
    pixels = np.stack([load_pixels(image.uri, size, image.image_id) for image in sources])
    return pipeline.encode_pixels(pixels)[0]


def _reconstruction(
    pipeline: Pipeline,
    latents: torch.Tensor,
    inverted: dict[int, torch.Tensor],
    prompt_embeds: torch.Tensor,
    timesteps: Sequence[int],
    on_forwards: Callable[[int], None],
) -> list[float]:
    """The images sampled as they were inverted, against what the VAE makes of them, in dB."""

    denoiser = Denoiser(
        pipeline, prompt_embeds, torch.arange(len(latents)), timesteps, on_forwards=on_forwards
    )

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return denoiser.predict_noise(x, timesteps.index(t))

    came_back = pipeline.decode(sample(pipeline, inverted[timesteps[0]], timesteps, predict))
    expected = pipeline.decode(latents)
    errors = ((came_back.astype(float) - expected) ** 2).mean(axis=(1, 2, 3))
    return [float(10 * np.log10(255**2 / max(error, 1e-9))) for error in errors]


def _in_halves(
    redraw_pairs: Callable[[Sequence[tuple[int, str]]], torch.Tensor],
    pairs: Sequence[tuple[int, str]],
) -> torch.Tensor:
    """All pairs redrawn, together or, where memory runs out, one half after the other."""
    try:
        return redraw_pairs(pairs)
    except torch.OutOfMemoryError as error:
        if len(pairs) == 1:
            raise InputError(
                f"A single image and its source do not fit into the GPU's memory "
                f"({first_line(error)}); take smaller images, or a device with more memory."
            ) from error
    torch.cuda.empty_cache()
    half = len(pairs) // 2
    return torch.cat([_in_halves(redraw_pairs, part) for part in (pairs[:half], pairs[half:])])


def _packed(wanted: Sequence[Sequence[str]], rows: int) -> Iterator[list[tuple[int, str]]]:
    """Pairs of a source and a target, for one batch each: a row per source and two per pair."""
    at_most = max(1, (rows - 1) // 2)
    packed: list[tuple[int, str]] = []
    used = 0
    for source, labels in enumerate(wanted):
        for first in range(0, len(labels), at_most):
            some = labels[first : first + at_most]
            needed = 1 + 2 * len(some)
            if packed and used + needed > rows:
                yield packed
                packed, used = [], 0
            packed += [(source, label) for label in some]
            used += needed
    if packed:
        yield packed
