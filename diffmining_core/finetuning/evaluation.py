"""The loss on images that are never trained on, and beside it on as many that are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffmining_core.finetuning.batches import Batches
from diffmining_core.finetuning.losses import BINS
from diffmining_core.models.generation import Predict
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.seeds import seeded


@dataclass(frozen=True)
class FixedImage:
    """An image with one latent, and a noise and a timestep in each of the bins."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompt: str


class FixedDraws:
    """Images whose loss is measured again and again under the same noise and timesteps.

    Every image is seen once in each bin of timesteps, so that two measurements differ by the
    weights alone. Squares are cut from the middle, and no prompt is dropped.
    """

    def __init__(self, batches: Batches, indices: Sequence[int], prompts: PromptTemplate) -> None:
        self.batches, self.prompts = batches, prompts
        found = (self._fixed(index) for index in indices)
        self.images = [image for image in found if image is not None]

    def _fixed(self, index: int) -> FixedImage | None:
        posterior = self.batches.encoded(index)
        if posterior is None:
            return None
        image = self.batches.images.describe(index)
        generator = seeded(self.batches.options.seed, "held out", image.image_id)
        mean, std = posterior
        width = self.batches.timesteps // BINS
        return FixedImage(
            latents=mean + std * torch.randn(mean.shape, generator=generator),
            noise=torch.randn((BINS, *mean.shape), generator=generator),
            timesteps=torch.arange(BINS) * width
            + torch.randint(width, (BINS,), generator=generator),
            prompt=self.prompts.of(*image.labels),
        )

    @torch.no_grad()
    def losses(self, predict: Predict, at_once: int, part: slice) -> torch.Tensor:
        """float32 [images, BINS] on the CPU; zero but for the images of `part`.

        at_once: how many go through the UNet together.
        """
        pipeline = self.batches.pipeline
        losses = torch.zeros(len(self.images), BINS)
        cells = [(i, b) for i in range(len(self.images))[part] for b in range(BINS)]
        for start in range(0, len(cells), at_once):
            some = cells[start : start + at_once]
            latents = torch.stack([self.images[i].latents for i, _ in some]).to(pipeline.device)
            noise = torch.stack([self.images[i].noise[b] for i, b in some]).to(pipeline.device)
            timesteps = torch.stack([self.images[i].timesteps[b] for i, b in some])
            timesteps = timesteps.to(pipeline.device)
            embeds = torch.stack([self.batches.embed(self.images[i].prompt) for i, _ in some])
            prediction = predict(pipeline.add_noise(latents, noise, timesteps), timesteps, embeds)
            target = pipeline.training_target(latents, noise, timesteps)
            errors = ((prediction - target) ** 2).mean((1, 2, 3)).cpu()
            for (i, b), error in zip(some, errors, strict=True):
                losses[i, b] = error
        return losses
