"""Plug-and-Play (Tumanyan et al. 2023): an image redrawn under other labels, its layout kept.

Comes in: latents inverted at every sampling timestep, with the prompts of their targets. Goes out:
the latents of each image under each of its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

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
    2 · pairs · steps.
    """
    timesteps = sampling_timesteps(steps)
    of_pair = targets.source_of_pair.to(pipeline.device)
    sources = len(start)
    source_of_row = torch.cat([torch.arange(sources, device=pipeline.device), of_pair, of_pair])
    guided = torch.cat([null_embeds.expand(len(of_pair), -1, -1), targets.prompt_embeds])
    with_sources = torch.cat([null_embeds.expand(sources, -1, -1), guided])

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        step = timesteps.index(t)
        rows, embeds = torch.cat([x, x]), guided
        carried: AbstractContextManager[None] = nullcontext()
        if step < FEATURE_SHARE * steps:
            rows, embeds = torch.cat([inverted[t], rows]), with_sources
            carried = injected(pipeline.unet, source_of_row, step < ATTENTION_SHARE * steps)
        with carried:
            at = torch.full((len(rows),), t, device=pipeline.device)
            noise_pred = pipeline.predict_noise(rows, at, embeds)
        on_forwards(len(rows))
        null, target = noise_pred[-2 * len(x) :].chunk(2)
        return null + guidance * (target - null)

    return sample(pipeline, start[targets.source_of_pair.to(start.device)], timesteps, predict)
