"""The typicality estimator of the paper (ECCV 2024, eq. 3).

Comes in: latents of images of one shape, the embeddings of their labels' prompts and of the null
prompt, draws. Goes out: per pair of an image and one of its labels, at each latent position, the
mean over draws and the sum of squared deviations from which its standard error follows: of n draws
that come in g groups of dependent ones it is sqrt(m2 / (n (g - 1))).

The UNet alone runs in the model's precision. Noise is drawn, latents are noised and all that
follows from a prediction is computed in float32, so that a half-precision model costs the
rounding of its predictions and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from diffmining_core.models.denoiser import Denoiser
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.typicality.draws import Draws


class Estimate(NamedTuple):
    """Typicality of pairs of an image and a label, all float32."""

    mean: torch.Tensor
    """[pairs, h, w]: mean over the draws of T, in units of noise variance."""
    m2: torch.Tensor
    """[pairs, h, w]: sum of squared deviations from that mean, of the groups of draws, each as
    often as it has draws."""
    null_loss: torch.Tensor
    """[pairs]: mean over draws and positions of L_t(x, ε, null), the scale of typicality; one
    value for all pairs of an image."""
    window_m2: torch.Tensor | None
    """[pairs, h, w]: as m2, of the mean of T over the window that begins at each position; its last
    rows and columns repeat those of the last windows that fit."""


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
    window: int | None = None,
) -> Estimate:
    """T(x|c) = L_t(x, ε, null) - L_t(x, ε, c) of every pair of an image x and a label c.

    `latents` [images, channels, h, w]; `label_embeds` [pairs, tokens, d], each the prompt of one
    label of the image `image_of_pair` int64 [pairs]; `null_embeds` [1, tokens, d]. L is the
    squared error of the predicted noise, averaged over channels, so T is in units of noise
    variance; positive where the label helps. window: side, in latent positions, of the windows
    whose moments are wanted too.

    The null prediction of an image serves all its labels: images + pairs go through the UNet per
    draw, `at_once` of them at a time (as many as the device does best with, if None);
    `on_forwards` hears how many went.

    The two losses are never formed: with e0, ec the two predictions,
    (e0 - ε)² - (ec - ε)² = (e0 - ec) · (e0 + ec - 2 ε), summed on the device (Welford).
    """
    images, device = len(latents), pipeline.device
    latents, of_pair = latents.to(device), image_of_pair.to(device)
    image_of_row = torch.cat([torch.arange(images, device=device), of_pair])
    prompt_of_row = torch.cat([torch.zeros(images), 1 + torch.arange(len(of_pair))]).long()
    denoiser = Denoiser(
        pipeline,
        torch.cat([null_embeds, label_embeds]),
        prompt_of_row,
        draws.timesteps,
        at_once,
        on_forwards,
    )
    noises = draws.noise.to(device)

    of_map, of_window = Moments(), Moments()
    null_loss = torch.zeros(images, device=device)
    for first in range(0, len(draws), draws.together):
        gains = []
        for j in range(first, min(first + draws.together, len(draws))):
            noise, timesteps = noises[j], denoiser.timesteps[j].expand(images)
            noisy = pipeline.add_noise(latents, noise, timesteps)
            noise_pred = denoiser.predict_noise(noisy[image_of_row], j)
            e0, ec = torch.split(noise_pred, [images, len(of_pair)])
            null_loss += ((e0 - noise) ** 2).mean(dim=(1, 2, 3))
            gains.append(((e0[of_pair] - ec) * (e0[of_pair] + ec - 2 * noise)).mean(dim=1))
        gain = torch.stack(gains).mean(dim=0)
        of_map.add(gain, len(gains))
        if window is not None:
            of_window.add(windowed(gain, window), len(gains))
    return Estimate(
        of_map.mean,
        of_map.m2,
        (null_loss / len(draws))[of_pair],
        None if window is None else of_window.m2,
    )


class Moments:
    """Mean and sum of squared deviations from it, of means of one draw or of a few together."""

    def __init__(self) -> None:
        self.draws = 0
        self.mean = self.m2 = torch.zeros(())

    def add(self, value: torch.Tensor, draws: int) -> None:
        """The mean `value` of so many more draws."""
        if not self.draws:
            self.mean, self.m2 = torch.zeros_like(value), torch.zeros_like(value)
        self.draws += draws
        deviation = value - self.mean
        self.mean = self.mean + deviation * (draws / self.draws)
        self.m2 = self.m2 + draws * deviation * (value - self.mean)


def windowed(gain: torch.Tensor, window: int) -> torch.Tensor:
    """The mean over the window that begins at each position of `gain` [pairs, h, w], as large.

    A window is no larger than the map; the last ones that fit are repeated.
    """
    _, h, w = gain.shape
    down, across = min(window, h), min(window, w)
    means = functional.avg_pool2d(gain[:, None], (down, across), stride=1)
    return functional.pad(means, (0, across - 1, 0, down - 1), mode="replicate")[:, 0]
