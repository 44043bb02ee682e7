"""DIFT (Tang et al. 2023): the UNet's inner activations on a noised image, as features.

Comes in: the latents of one image with its label's prompt embedding. Goes out: a feature map,
from which `patch_features` averages the cells under each patch. One image at a time, its noises
as the batch, so that a patch's feature never depends on which other images were embedded with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from diffmining_core.models.denoiser import Denoiser
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.typicality.draws import INDEPENDENT, Draws, draw, sampled_latents

TIMESTEP = 161
UP_BLOCK = 1
NOISES = 8


@torch.inference_mode()
def dift(
    pipeline: Pipeline, latents: torch.Tensor, prompt_embeds: torch.Tensor, draws: Draws
) -> torch.Tensor:
    """The feature map float32 [C, h', w'] of one image, the mean over the noises of `draws`.

    `latents` [channels, h, w], `prompt_embeds` [tokens, d]. The activation is the output of
    `up_blocks[1]` at t = 161: 1280 channels at 1/16 of the image for Stable Diffusion 1.5. The
    blocks behind it are never run.
    """
    noise = draws.noise.to(pipeline.device)
    timesteps = torch.full((len(noise),), TIMESTEP, device=pipeline.device)
    noisy = pipeline.add_noise(latents.to(pipeline.device), noise, timesteps)
    of_noise = torch.zeros(len(noise), dtype=torch.int64)
    denoiser = Denoiser(pipeline, prompt_embeds[None], of_noise, [TIMESTEP], at_once=len(noise))
    return denoiser.activation(noisy, 0, UP_BLOCK).mean(dim=0)


def patch_features(
    feature_map: torch.Tensor,
    patches: Sequence[tuple[int, int]],
    size: int,
    image_hw: tuple[int, int],
) -> torch.Tensor:
    """L2-normalised mean feature float32 [len(patches), C] of the cells under each patch.

    `feature_map` [C, h', w'] covers the image of `image_hw` pixels; patches are (y, x) of their
    top left corners. Bounds are floored to cells as in the released research code, and a patch
    holds at least one cell.
    """
    _, rows, columns = feature_map.shape
    pooled = []
    for y, x in patches:
        top, bottom = y * rows // image_hw[0], (y + size) * rows // image_hw[0]
        left, right = x * columns // image_hw[1], (x + size) * columns // image_hw[1]
        cells = feature_map[:, top : max(bottom, top + 1), left : max(right, left + 1)]
        pooled.append(cells.mean(dim=(1, 2)))
    return torch.nn.functional.normalize(torch.stack(pooled), dim=1)


def image_features(
    pipeline: Pipeline,
    pixels: npt.NDArray[np.uint8],
    prompt_embeds: torch.Tensor,
    patches: Sequence[tuple[int, int]],
    patch_size: int,
    seed: int,
    image_id: str,
) -> npt.NDArray[np.float32]:
    """Features float32 [len(patches), C] of one model-size image uint8 [h, w, 3].

    The VAE sample and the noises are those that `seed` and `image_id` give everywhere. InputError
    for a feature that is not finite.
    """
    latents = sampled_latents(pipeline, pixels[None], [image_id], seed)[0]
    latent_shape = (latents.shape[0], latents.shape[1], latents.shape[2])
    t_range = (TIMESTEP / 1000, (TIMESTEP + 1) / 1000)
    draws = draw(seed, latent_shape, NOISES, t_range, device=latents.device, spread=INDEPENDENT)
    feature_map = dift(pipeline, latents, prompt_embeds, draws)
    pipeline.check_finite(feature_map, f"the features of {image_id}")
    pooled = patch_features(feature_map, patches, patch_size, pixels.shape[:2])
    return pooled.cpu().numpy()
