"""The typicality estimator of the paper (ECCV 2024, eq. 3).

Comes in: latents of images of one shape, the embeddings of their labels' prompts and of the null
prompt, draws. Goes out: per pair of an image and one of its labels, at each latent position, the
mean over draws and the sum of squared deviations from which its standard error follows.

The UNet alone runs in the model's precision. Noise is drawn, latents are noised and all that
follows from a prediction is computed in float32, so that a half-precision model costs the
rounding of its predictions and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.typicality.draws import Draws


class Estimate(NamedTuple):
    """Typicality of pairs of an image and a label, all float32."""

    mean: torch.Tensor
    """[pairs, h, w]: mean over the draws of T, in units of noise variance."""
    m2: torch.Tensor
    """[pairs, h, w]: sum over the draws of squared deviations from that mean."""
    null_loss: torch.Tensor
    """[pairs]: mean over draws and positions of L_t(x, ε, null), the scale of typicality; one
    value for all pairs of an image."""


@torch.inference_mode()
def typicality(
    pipeline: Pipeline,
    latents: torch.Tensor,
    label_embeds: torch.Tensor,
    image_of_pair: torch.Tensor,
    null_embeds: torch.Tensor,
    draws: Draws,
    on_forwards: Callable[[int], None] = lambda forwards: None,
    at_once: int | None = None,
) -> Estimate:
    """T(x|c) = L_t(x, ε, null) - L_t(x, ε, c) of every pair of an image x and a label c.

    `latents` [images, channels, h, w]; `label_embeds` [pairs, tokens, d], each the prompt of one
    label of the image `image_of_pair` int64 [pairs]; `null_embeds` [1, tokens, d]. L is the
    squared error of the predicted noise, averaged over channels, so T is in units of noise
    variance; positive where the label helps. The standard error of the mean over N draws is
    sqrt(m2 / (N (N - 1))).

    The null prediction of an image serves all its labels: images + pairs go through the UNet per
    draw, `at_once` of them at a time (all, if None); `on_forwards` hears how many went.

    The two losses are never formed: with e0, ec the two predictions,
    (e0 - ε)² - (ec - ε)² = (e0 - ec) · (e0 + ec - 2 ε), summed on the device (Welford).
    """
    images, device = len(latents), pipeline.device
    latents, of_pair = latents.to(device), image_of_pair.to(device)
    image_of_row = torch.cat([torch.arange(images, device=device), of_pair])
    embeds = torch.cat([null_embeds.expand(images, -1, -1), label_embeds])
    at_once = at_once or len(image_of_row)

    mean = torch.zeros(len(of_pair), *latents.shape[2:], device=device)
    m2 = torch.zeros_like(mean)
    null_loss = torch.zeros(images, device=device)
    for j in range(len(draws)):
        noise = draws.noise[j].to(device)
        timesteps = draws.timesteps[j].to(device)
        noisy = pipeline.add_noise(latents, noise, timesteps.expand(images))
        noise_pred = []
        for of_row, prompt_embeds in zip(
            torch.split(image_of_row, at_once), torch.split(embeds, at_once), strict=True
        ):
            t = timesteps.expand(len(of_row))
            noise_pred.append(pipeline.predict_noise(noisy[of_row], t, prompt_embeds))
            on_forwards(len(of_row))
        e0, ec = torch.split(torch.cat(noise_pred), [images, len(of_pair)])

        null_loss += ((e0 - noise) ** 2).mean(dim=(1, 2, 3))
        gain = ((e0[of_pair] - ec) * (e0[of_pair] + ec - 2 * noise)).mean(dim=1)
        deviation = gain - mean
        mean += deviation / (j + 1)
        m2 += deviation * (gain - mean)
    return Estimate(mean, m2, (null_loss / len(draws))[of_pair])
