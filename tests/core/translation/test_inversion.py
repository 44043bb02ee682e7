from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler

from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.translation.inversion import ddim_move, invert, sample, sampling_timesteps

Latents = Callable[[list[ShardImage]], torch.Tensor]


def ddim(pipeline: Pipeline, steps: int) -> DDIMScheduler:
    """The sampler of diffusers, as Stable Diffusion 1.5 configures it."""
    config = {**pipeline.scheduler.config, "set_alpha_to_one": False}
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [50, 20, 10])
def test_the_timesteps_are_those_of_stable_diffusions_sampler(tiny: Pipeline, steps: int) -> None:
    assert sampling_timesteps(steps) == ddim(tiny, steps).timesteps.tolist()


def test_a_step_is_that_of_diffusers_sampler(tiny: Pipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    scheduler = ddim(tiny, 50)

    def predict(latents: torch.Tensor, t: int) -> torch.Tensor:
        return torch.sin(latents * 3) + t / 1000

    expected = x
    for t in scheduler.timesteps:
        expected = scheduler.step(predict(expected, int(t)), t, expected).prev_sample
    came = sample(tiny, x, sampling_timesteps(50), predict)
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)


def test_a_step_back_undoes_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1, 4, 8, 8, generator=generator).unbind()
    low, high = torch.tensor(0.9), torch.tensor(0.2)
    there = ddim_move(x, noise, high, low)
    torch.testing.assert_close(ddim_move(there, noise, low, high), x, rtol=1e-4, atol=1e-5)


def test_what_is_inverted_and_sampled_without_injection_is_reconstructed(
    tiny: Pipeline, drawn: list[ShardImage], latents_of: Latents
) -> None:
    latents = latents_of(drawn[:2])
    embeds = tiny.embed_prompts([f"An image of {image.label}." for image in drawn[:2]])
    timesteps = sampling_timesteps(50)
    forwards: list[int] = []

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return tiny.predict_noise(x, torch.full((len(x),), t), embeds)

    errors = {}
    for stride in (10, 20):
        upwards = range(1, timesteps[0] + 1, stride)
        inverted = invert(tiny, latents, embeds, upwards, timesteps, forwards.append)
        assert sorted(inverted) == sorted(timesteps), "those of sampling alone are kept"
        noise = inverted[timesteps[0]]
        assert 0.8 < noise.std() < 1.2
        came = sample(tiny, noise, timesteps, predict)
        errors[stride] = float(((came - latents) ** 2).mean() / latents.var())
    assert len(forwards) == 99 + 50 and set(forwards) == {2}
    assert errors[10] < 0.05
    assert errors[10] < errors[20] < 0.5, "a shorter inversion comes back less well"


def test_an_image_is_inverted_alike_in_any_batch(
    tiny: Pipeline, drawn: list[ShardImage], latents_of: Latents
) -> None:
    latents = latents_of(drawn[:3])
    embeds = tiny.embed_prompts([f"An image of {image.label}." for image in drawn[:3]])
    upwards = range(1, 1000, 100)
    together = invert(tiny, latents, embeds, upwards, [901])[901]
    alone = [
        invert(tiny, latents[i : i + 1], embeds[i : i + 1], upwards, [901])[901] for i in (0, 2)
    ]
    torch.testing.assert_close(together[[0, 2]], torch.cat(alone), rtol=1e-3, atol=1e-4)
