"""DDIM (Song et al. 2021, eq. 12 with η = 0), towards noise and back.

One step moves a latent between two noise levels along the noise that the model predicts. Inversion
takes an image's latent up through the timesteps; sampling takes one down. The noise level below the
first timestep is that of timestep 0, as in Stable Diffusion (`set_alpha_to_one` is false).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffmining_core.models.denoiser import Denoiser
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.typicality.draws import TRAIN_TIMESTEPS


def sampling_timesteps(steps: int) -> list[int]:
    """The timesteps of DDIM sampling, from noise to image: 981, 961 … 1 for 50 steps.

    `steps` divides 1000.
    """
    stride = TRAIN_TIMESTEPS // steps
    return [1 + stride * step for step in reversed(range(steps))]


def ddim_move(
    x: torch.Tensor, noise_pred: torch.Tensor, alpha_from: torch.Tensor, alpha_to: torch.Tensor
) -> torch.Tensor:
    """x_to = sqrt(ā_to) x̂_0 + sqrt(1 - ā_to) ε̂.

    In it x̂_0 = (x_from - sqrt(1 - ā_from) ε̂) / sqrt(ā_from).
    """
    x0 = (x - (1 - alpha_from).sqrt() * noise_pred) / alpha_from.sqrt()
    return alpha_to.sqrt() * x0 + (1 - alpha_to).sqrt() * noise_pred


@torch.inference_mode()
def invert(
    pipeline: Pipeline,
    latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    timesteps: Sequence[int],
    kept: Sequence[int],
    on_forwards: Callable[[int], None] = lambda forwards: None,
) -> dict[int, torch.Tensor]:
    """The latents float32 [n, channels, h, w] at the `kept` timesteps, by timestep, on the device.

    `latents` [n, channels, h, w] are those of the images, `prompt_embeds` [n, tokens, d] of their
    labels; `timesteps` rise. Each step asks for the noise at the timestep it goes to, as the
    Plug-and-Play code does. n forwards for each timestep.
    """
    alphas = _alphas(pipeline)
    x = latents.to(pipeline.device)
    inverted = {}
    alpha = alphas[0]
    denoiser = Denoiser(
        pipeline, prompt_embeds, torch.arange(len(x)), timesteps, on_forwards=on_forwards
    )
    for place, t in enumerate(timesteps):
        noise_pred = denoiser.predict_noise(x, place)
        x, alpha = ddim_move(x, noise_pred, alpha, alphas[t]), alphas[t]
        if t in kept:
            inverted[t] = x
    return inverted


@torch.inference_mode()
def sample(
    pipeline: Pipeline,
    start: torch.Tensor,
    timesteps: Sequence[int],
    predict: Callable[[torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """The latents float32 [n, channels, h, w] that DDIM takes `start`, of the first timestep, to.

    predict: the noise at latents and a timestep, guided as the caller wants it; `timesteps` fall.
    """
    alphas = _alphas(pipeline)
    x = start.to(pipeline.device)
    for t, following in zip(timesteps, [*timesteps[1:], 0], strict=True):
        x = ddim_move(x, predict(x, t), alphas[t], alphas[following])
    return x


def _alphas(pipeline: Pipeline) -> torch.Tensor:
    """ā by timestep, float32 on the device."""
    alphas: torch.Tensor = pipeline.scheduler.alphas_cumprod.to(pipeline.device, torch.float32)
    return alphas
