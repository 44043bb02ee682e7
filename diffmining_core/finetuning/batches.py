"""What each step trains on: latents, noise, timesteps and prompts, made from (seed, step) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from diffmining_core.errors import InputError
from diffmining_core.finetuning.images import Described, LabelledImages, trained_square
from diffmining_core.finetuning.latents import LatentCache
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.sampling import Sampling
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.seeds import seeded

PROMPTS_KEPT = 512
"""Embedded prompts that stay on the device; one of Stable Diffusion 1.5 has 236 KB."""

CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Batch:
    """Images of one step on the device; `places` are theirs within the whole batch.

    all_timesteps: those of the whole batch, on the CPU.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompt_embeds: torch.Tensor
    places: slice
    all_timesteps: torch.Tensor


class Batches:
    """Makes the batches of a training."""

    def __init__(
        self,
        pipeline: Pipeline,
        images: LabelledImages,
        prompts: PromptTemplate,
        options: FinetuneOptions,
        sampling: Sampling,
        cache: LatentCache,
    ) -> None:
        self.pipeline, self.images, self.prompts = pipeline, images, prompts
        self.options, self.sampling, self.cache = options, sampling, cache
        self.latent_shape = latent_shape(pipeline, options)
        # Each prompt is embedded alone: in company the last bits would be others.
        self.embed = lru_cache(PROMPTS_KEPT)(lambda prompt: pipeline.embed_prompts([prompt])[0])

    def at(self, step: int, places: slice) -> Batch:
        """The images at these places of a step's batch; random numbers are drawn for all of it."""
        options = self.options
        generator = seeded(options.seed, "finetune", step)
        shape = (options.batch_size, *self.latent_shape)
        corners = torch.rand(options.batch_size, 2, generator=generator).tolist()
        sampled = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(self.timesteps, (options.batch_size,), generator=generator)
        chances = torch.rand(options.batch_size, generator=generator).tolist()
        means, stds, prompts = [], [], []
        for place, index in list(enumerate(self.sampling.indices(step)))[places]:
            mean, std, image = self._encoded_or_next(index, corners[place])
            means.append(mean)
            stds.append(std)
            prompts.append(self._prompt(image, chances[place]))
        device = self.pipeline.device
        return Batch(
            (torch.stack(means) + torch.stack(stds) * sampled[places]).to(device),
            noise[places].to(device),
            timesteps[places].to(device),
            torch.stack([self.embed(prompt) for prompt in prompts]),
            places,
            timesteps,
        )

    @property
    def timesteps(self) -> int:
        """How many timesteps the model knows: 1000."""
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    def _prompt(self, image: Described, chance: float) -> str:
        """The prompt of an image, by one number in [0, 1) as in the released research code.

        So both shares are shares of all images, not one of what the other leaves.
        """
        null_share = self.options.null_share
        if chance < null_share:
            return self.prompts.null
        if image.detail and chance < null_share + self.prompts.detailed_share:
            return self.prompts.of_detail(image.labels, image.detail)
        return self.prompts.of(*image.labels)

    def _encoded_or_next(
        self, index: int, corner: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, Described]:
        """An image's posterior and labels; those of the next one trained on if it is unusable."""
        trained = self.sampling.trained
        start = int(np.searchsorted(trained, index))
        for place in range(start, start + len(trained)):
            other = int(trained[place % len(trained)])
            posterior = self.encoded(other, corner)
            if posterior:
                return *posterior, self.images.describe(other)
        raise InputError(
            f"none of the {len(trained)} images can be used; see the log for the reasons"
        )

    def encoded(
        self, index: int, corner: Sequence[float] = CENTRE
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Posterior mean and std [channels, h, w] of an image's square; None if it is unusable.

        Images that need no crop are encoded once and kept.
        """
        if kept := self.cache.get(index):
            return kept
        image = self.images.load(index)
        if image is None:
            return None
        square = trained_square(image, self.options, corner)
        mean, std = (part[0].cpu() for part in self.pipeline.encode_pixels(square[None]))
        if square.shape == image.pixels.shape:
            self.cache.put(index, mean, std)
        return mean, std


def latent_shape(pipeline: Pipeline, options: FinetuneOptions) -> tuple[int, int, int]:
    """[channels, h, w] of the latents that are trained on."""
    cells = options.side // pipeline.cell
    return int(pipeline.vae.config.latent_channels), cells, cells
