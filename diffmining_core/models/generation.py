"""Images that a model makes of a label: DDIM with classifier-free guidance.

In: noise and the embeddings of two prompts. Out: latents, or images of a label that depend on the
seed, the label and their number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.seeds import seeded

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Noisy latents, timesteps, prompt embeddings -> what the UNet says, float32."""

AT_ONCE = 8
"""Images that are sampled together: always as many, as their number moves the last bits."""


def latent_shape(pipeline: Pipeline, side: int) -> tuple[int, int, int]:
    """(channels, h, w) of the latents of square images of `side` pixels."""
    cells = side // pipeline.cell
    return int(pipeline.vae.config.latent_channels), cells, cells


@torch.no_grad()
def sampled(
    pipeline: Pipeline,
    predict: Predict,
    noise: torch.Tensor,
    embeds: torch.Tensor,
    guidance: float,
    steps: int,
) -> torch.Tensor:
    """Latents [n, channels, h, w] that DDIM comes to from `noise` of that shape.

    embeds [2, tokens, d] are of the null prompt and of the label's. At each step the prediction is
    null + guidance · (conditioned - null), so that 1 is the label's alone and needs no other.
    """
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps, device=pipeline.device)
    latents, n = noise.to(pipeline.device), len(noise)
    both = (embeds[1:] if guidance == 1 else embeds).repeat_interleave(n, 0)
    copies = len(both) // n
    for timestep in scheduler.timesteps:
        said = predict(latents.repeat(copies, 1, 1, 1), timestep.expand(copies * n), both)
        guided, conditioned = said[:n], said[-n:]
        if guidance != 1:
            guided = guided + guidance * (conditioned - guided)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents


def generated_images(
    pipeline: Pipeline,
    prompts: PromptTemplate,
    label: str,
    count: int,
    side: int,
    guidance: float,
    steps: int,
    seed: int,
) -> Iterator[npt.NDArray[np.uint8]]:
    """`count` images uint8 [side, side, 3] of a label.

    The noise of each depends on (seed, label, its number), so the first ones are the same however
    many are asked for, and images of two guidance scales differ by the scale alone.
    """
    embeds = pipeline.embed_prompts([prompts.null, prompts.of(label)])
    shape = latent_shape(pipeline, side)
    for start in range(0, count, AT_ONCE):
        noise = [
            torch.randn(shape, generator=seeded(seed, "generated", label, number))
            for number in range(start, start + AT_ONCE)
        ]
        latents = sampled(pipeline, pipeline.predict, torch.stack(noise), embeds, guidance, steps)
        yield from pipeline.decode(latents[: count - start])
