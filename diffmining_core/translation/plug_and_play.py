"""Plug-and-Play (Tumanyan et al. 2023): an image redrawn under other labels, its layout kept.

Comes in: latents inverted at every sampling timestep, with the prompts of their targets. Goes out:
the latents of each image under each of its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from diffmining_core.models.denoiser import Denoiser
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.translation.injection import injected
from diffmining_core.translation.inversion import sample, sampling_timesteps

ATTENTION_SHARE = 0.5
"""Share of the steps, from the first, with shared self-attention: 25 of 50."""
FEATURE_SHARE = 0.8
"""The same of the residual features: 40 of 50."""


@dataclass(frozen=True)
class Targets:
    """What images are to be redrawn as: pairs of an image and a label."""

    source_of_pair: torch.Tensor
    """int64 [pairs]: the place of the image among the sources."""
    prompt_embeds: torch.Tensor
    """[pairs, tokens, d]: of the label's prompt."""

    def __len__(self) -> int:
        return len(self.source_of_pair)


@torch.inference_mode()
def redraw(
    pipeline: Pipeline,
    inverted: Mapping[int, torch.Tensor],
    start: torch.Tensor,
    targets: Targets,
    null_embeds: torch.Tensor,
    steps: int,
    guidance: float,
    on_forwards: Callable[[int], None] = lambda forwards: None,
) -> torch.Tensor:
    """The latents float32 [pairs, channels, h, w] of each image under each of its targets.

    `inverted`: latents [sources, channels, h, w] at each of the `steps` sampling timesteps;
    `start` [sources, …] those from which the redrawn ones begin; `null_embeds` [1, tokens, d].
    ε̂ = ε̂(null) + guidance · (ε̂(target) - ε̂(null)), all pairs in one batch.

    A source goes through the UNet once for all its targets, at the latent that inversion had, with
    the null prompt, and only while something is carried over: sources · 0.8 · steps forwards and
    2 · pairs · steps. torch.OutOfMemoryError if they are too many for one batch.
    """
    timesteps = sampling_timesteps(steps)
    of_pair = targets.source_of_pair.to(pipeline.device)
    sources = len(start)
    source_of_row = torch.cat([torch.arange(sources, device=pipeline.device), of_pair, of_pair])
    prompts = torch.cat([null_embeds, targets.prompt_embeds])
    null, target = torch.zeros(len(of_pair)).long(), 1 + torch.arange(len(of_pair))

    def denoiser(prompt_of_row: torch.Tensor) -> Denoiser:
        return Denoiser(
            pipeline, prompts, prompt_of_row, timesteps, on_forwards=on_forwards, whole=True
        )

    guided = denoiser(torch.cat([null, target]))
    with_sources = denoiser(torch.cat([torch.zeros(sources).long(), null, target]))

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        step = timesteps.index(t)
        if step < FEATURE_SHARE * steps:
            rows = torch.cat([inverted[t], x, x])
            with injected(pipeline.unet, source_of_row, step < ATTENTION_SHARE * steps):
                noise_pred = with_sources.predict_noise(rows, step)
        else:
            noise_pred = guided.predict_noise(torch.cat([x, x]), step)
        null, target = noise_pred[-2 * len(x) :].chunk(2)
        return null + guidance * (target - null)

    return sample(pipeline, start[targets.source_of_pair.to(start.device)], timesteps, predict)
