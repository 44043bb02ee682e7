"""The typicality estimator of the paper (ECCV 2024, eq. 3).

Comes in: latents of images of one shape, the embeddings of their labels' prompts and of the null
prompt, draws. Goes out: per image and latent position the mean over draws, and the sum of squared
deviations from which its standard error follows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.typicality.draws import Draws


@torch.inference_mode()
def typicality(
    pipeline: Pipeline,
    latents: torch.Tensor,
    label_embeds: torch.Tensor,
    null_embeds: torch.Tensor,
    draws: Draws,
    on_forwards: Callable[[int], None] = lambda forwards: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and m2 of T(x|c) = L_t(x, ε, null) - L_t(x, ε, c), both float32 [n, h, w].

    `latents` [n, channels, h, w]; `label_embeds` [n, tokens, d], one row per image;
    `null_embeds` [1, tokens, d]. L is the squared error of the predicted noise, averaged over
    channels, so T is in units of noise variance; positive where the label helps. With m2 the sum
    over draws of squared deviations from the mean, the standard error is
    sqrt(m2 / (N (N - 1))). `on_forwards` hears how many images went through the UNet.

    The two losses are never formed: with e0, ec the two predictions,
    (e0 - ε)² - (ec - ε)² = (e0 - ec) · (e0 + ec - 2 ε), summed on the device (Welford).
    """
    n = len(latents)
    latents = latents.to(pipeline.device)
    embeds = torch.cat([null_embeds.expand(n, -1, -1), label_embeds])
    mean = torch.zeros(n, *latents.shape[2:], device=pipeline.device)
    m2 = torch.zeros_like(mean)
    for j in range(len(draws)):
        noise = draws.noise[j].to(pipeline.device)
        timesteps = draws.timesteps[j].to(pipeline.device).expand(n)
        noisy = pipeline.add_noise(latents, noise, timesteps)
        e0, ec = pipeline.predict_noise(
            noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), embeds
        ).chunk(2)
        gain = ((e0 - ec) * (e0 + ec - 2 * noise)).mean(dim=1)
        deviation = gain - mean
        mean += deviation / (j + 1)
        m2 += deviation * (gain - mean)
        on_forwards(2 * n)
    return mean, m2
