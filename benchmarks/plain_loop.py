"""The plain research loop: mining as one writes it to try the method out, for comparison.

One image at a time, ten draws to a batch, one pass under the null prompt and one under the label.
The VAE encodes the image again for every batch, the text encoder its prompts for every image.
Every loss goes to the host and is kept. On CUDA all is in float16 by autocast, elsewhere in
float32. The draws are those of the project, so that both must come to the same maps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.pictures import Picture, Pixels
from diffmining_core.features.dift import NOISES, TIMESTEP, UP_BLOCK, patch_features
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.draws import INDEPENDENT, draw, sample_posterior

BATCH = 10
"""Draws that go through the UNet together."""

INVERSION = RECONSTRUCTION = 999
"""Forwards of one image up to the noise, and of the pass back down that checks them."""
BRANCHES = 3
"""Forwards of a sampling step: the source, the null prompt, the target."""
ATTENTION_SHARE, FEATURE_SHARE = 0.5, 0.8
"""Of the sampling steps, from the first, with the source's attention and features."""


class PlainMap(NamedTuple):
    """Typicality float32 [h, w] of an image, and the bytes of the losses that it came from."""

    mean: npt.NDArray[np.float32]
    stored: int


@torch.inference_mode()
def plain_typicality(
    pipeline: Pipeline,
    pictures: Sequence[Picture],
    prompts: PromptTemplate,
    draws: int,
    t_range: tuple[float, float],
    seed: int,
    folder: Path,
) -> list[PlainMap]:
    """Typicality of each picture; its losses [draws, 2, channels, h, w] are kept in `folder`."""
    maps = []
    for picture in pictures:
        pixels = picture.pixels()
        embeds = _embedded(pipeline, [prompts.null, prompts.of(picture.label)])
        drawn = draw(seed, _latent_shape(pipeline, pixels), draws, t_range)
        losses = []
        for start in range(0, draws, BATCH):
            noise = drawn.noise[start : start + BATCH].to(pipeline.device)
            timesteps = drawn.timesteps[start : start + BATCH].to(pipeline.device)
            latents = _sampled_latents(pipeline, pixels, picture.image_id, seed)
            noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
            both = []
            for prompt_embeds in embeds:
                noise_pred = _predicted(pipeline, noisy, timesteps, prompt_embeds)
                loss = (noise_pred.float() - noise) ** 2
                both.append(loss.to(noise_pred.dtype).cpu().numpy())
            losses.append(np.stack(both, axis=1))
        kept = np.concatenate(losses)
        np.save(folder / f"{picture.image_id}.npy", kept)
        gain = kept[:, 0].astype(np.float32) - kept[:, 1]
        maps.append(PlainMap(gain.mean(axis=(0, 1)), kept.nbytes))
    return maps


@torch.inference_mode()
def plain_features(
    pipeline: Pipeline,
    picture: Picture,
    prompts: PromptTemplate,
    patches: Sequence[tuple[int, int]],
    size: int,
    seed: int,
) -> npt.NDArray[np.float32]:
    """DIFT float32 [patches, C] of the patches at (y, x): for each one the whole image anew."""
    seen: list[torch.Tensor] = []
    hook = pipeline.unet.up_blocks[UP_BLOCK].register_forward_hook(
        lambda _module, _arguments, output: seen.append(output)
    )
    at = (TIMESTEP / 1000, (TIMESTEP + 1) / 1000)
    pixels = picture.pixels()
    features = []
    for patch in patches:
        (prompt_embeds,) = _embedded(pipeline, [prompts.of(picture.label)])
        drawn = draw(seed, _latent_shape(pipeline, pixels), NOISES, at, spread=INDEPENDENT)
        timesteps = drawn.timesteps.to(pipeline.device)
        latents = _sampled_latents(pipeline, pixels, picture.image_id, seed)
        noisy = pipeline.scheduler.add_noise(latents, drawn.noise.to(pipeline.device), timesteps)
        _predicted(pipeline, noisy, timesteps, prompt_embeds)
        feature_map = seen.pop().float().mean(dim=0)
        features.append(patch_features(feature_map, [patch], size, pixels.shape[:2])[0])
    hook.remove()
    return torch.stack(features).cpu().numpy()


@torch.inference_mode()
def plain_inversion(
    pipeline: Pipeline, picture: Picture, prompts: PromptTemplate, timesteps: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The latents [1, channels, h, w] of DDIM inversion at each of the rising timesteps."""
    (prompt_embeds,) = _embedded(pipeline, [prompts.of(picture.label)])
    alphas = pipeline.scheduler.alphas_cumprod.to(pipeline.device)
    x, _ = _posterior(pipeline, picture.pixels())
    inverted, alpha = {}, alphas[0]
    for t in timesteps:
        noise_pred = _predicted(pipeline, x, _at(pipeline, t), prompt_embeds).float()
        x, alpha = _moved(x, noise_pred, alpha, alphas[t]), alphas[t]
        inverted[t] = x
    return inverted


@torch.inference_mode()
def plain_redrawing(
    pipeline: Pipeline,
    inverted: Mapping[int, torch.Tensor],
    target: str,
    prompts: PromptTemplate,
    guidance: float,
) -> torch.Tensor:
    """The latents [1, channels, h, w] of the inverted picture under one target label.

    Plug-and-Play with three rows at each of the inverted timesteps, from the last one down.
    """
    null, wanted = _embedded(pipeline, [prompts.null, prompts.of(target)])
    embeds = torch.cat([null, null, wanted])
    alphas = pipeline.scheduler.alphas_cumprod.to(pipeline.device)
    downwards = sorted(inverted, reverse=True)
    x = inverted[downwards[0]]
    for step, (t, following) in enumerate(zip(downwards, [*downwards[1:], 0], strict=True)):
        with _injected(pipeline, step / len(downwards)):
            rows = torch.cat([inverted[t], x, x])
            _, without, with_label = _predicted(pipeline, rows, _at(pipeline, t), embeds).float()
        noise_pred = without + guidance * (with_label - without)
        x = _moved(x, noise_pred[None], alphas[t], alphas[following])
    return x


@torch.inference_mode()
def plain_decoding(pipeline: Pipeline, latents: torch.Tensor) -> Pixels:
    """The image uint8 [h, w, 3] of latents [1, channels, h, w]."""
    with _autocast(pipeline):
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    values = ((decoded[0].float().clamp(-1, 1) + 1) * 127.5).round().byte()
    image: Pixels = values.permute(1, 2, 0).cpu().numpy()
    return image


def plain_training(
    pipeline: Pipeline, pictures: Sequence[Picture], prompts: PromptTemplate, learning_rate: float
) -> Generator[float, None, None]:
    """Finetuning of the whole UNet in place, a step on all pictures for each loss that is taken.

    Everything is encoded and embedded again in each step.
    """
    parameters = [*pipeline.unet.requires_grad_(True).train().parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(enabled=pipeline.device.type == "cuda")
    generator = torch.Generator().manual_seed(0)
    try:
        while True:
            with torch.no_grad():
                latents = torch.cat(
                    [_sampled_latents(pipeline, one.pixels(), one.image_id, 0) for one in pictures]
                )
                said = [prompts.of(picture.label) for picture in pictures]
                embeds = torch.cat(_embedded(pipeline, said))
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            timesteps = torch.randint(1000, (len(latents),), generator=generator)
            timesteps = timesteps.to(pipeline.device)
            noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
            noise_pred = _predicted(pipeline, noisy, timesteps, embeds)
            loss = torch.nn.functional.mse_loss(noise_pred.float(), noise)
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call] # torch leaves it so
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            yield float(loss.detach())
    finally:
        pipeline.unet.requires_grad_(False).eval()


def _autocast(pipeline: Pipeline) -> AbstractContextManager[object]:
    if pipeline.device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return nullcontext()


def _embedded(pipeline: Pipeline, prompts: Sequence[str]) -> list[torch.Tensor]:
    """Prompt embeddings [1, tokens, d], one text after the other."""
    with _autocast(pipeline):
        return [pipeline.embed_prompts([prompt]) for prompt in prompts]


def _latent_shape(pipeline: Pipeline, pixels: Pixels) -> tuple[int, int, int]:
    height, width = pixels.shape[:2]
    channels = int(pipeline.unet.config.in_channels)
    return channels, height // pipeline.cell, width // pipeline.cell


def _posterior(pipeline: Pipeline, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [1, channels, h, w] of the scaled latents."""
    pixel_values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with _autocast(pipeline):
        posterior = pipeline.vae.encode(pixel_values.to(pipeline.device)).latent_dist
    scale = pipeline.vae.config.scaling_factor
    return posterior.mean.float() * scale, posterior.std.float() * scale


def _sampled_latents(pipeline: Pipeline, pixels: Pixels, image_id: str, seed: int) -> torch.Tensor:
    mean, std = _posterior(pipeline, pixels)
    return sample_posterior(mean, std, seed, [image_id])


def _predicted(
    pipeline: Pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
) -> torch.Tensor:
    """What the UNet says, in the precision that it says it in."""
    with _autocast(pipeline):
        said: torch.Tensor = pipeline.unet(
            noisy,
            timesteps,
            encoder_hidden_states=prompt_embeds.expand(len(noisy), -1, -1),
        ).sample
    return said


def _at(pipeline: Pipeline, timestep: int) -> torch.Tensor:
    return torch.tensor(timestep, device=pipeline.device)


def _moved(
    x: torch.Tensor, noise_pred: torch.Tensor, alpha_from: torch.Tensor, alpha_to: torch.Tensor
) -> torch.Tensor:
    """A DDIM step from one noise level to another."""
    x0 = (x - (1 - alpha_from).sqrt() * noise_pred) / alpha_from.sqrt()
    return alpha_to.sqrt() * x0 + (1 - alpha_to).sqrt() * noise_pred


@contextmanager
def _injected(pipeline: Pipeline, share: float) -> Iterator[None]:
    """After this share of the sampling steps: what the first row still gives to the others."""
    first, *behind = pipeline.unet.up_blocks[1:]
    layers: list[torch.nn.Module] = []
    if share < FEATURE_SHARE:
        layers.append(first.resnets[1].conv2)
    if share < ATTENTION_SHARE:
        for attention in [
            *first.attentions[1:],
            *(a for block in behind for a in block.attentions),
        ]:
            own = attention.transformer_blocks[0].attn1
            layers += [own.to_q, own.to_k]

    def take(_module: torch.nn.Module, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        return output[:1].expand_as(output)

    handles = [layer.register_forward_hook(take) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
