from __future__ import annotations

import pytest
import torch

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.typicality import ALGO
from diffmining_core.typicality.draws import Draws, draw
from diffmining_core.typicality.estimator import typicality

# Each loss is about 1, the noise's variance, and float32 predictions differ by some 1e-6.
LOSS_ERROR = 5e-6


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@torch.no_grad()
def by_definition(
    pipeline: Pipeline,
    latents: torch.Tensor,
    label_embeds: torch.Tensor,
    null_embeds: torch.Tensor,
    draws: Draws,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard error of the two losses' difference (eq. 3), image by image, in float64."""

    def loss(
        noisy: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        noise_pred = pipeline.unet(noisy, t, encoder_hidden_states=embeds).sample
        squared: torch.Tensor = (noise_pred.double() - noise.double()) ** 2
        return squared.mean(dim=1)[0]

    gains = []
    for x, embeds in zip(latents, label_embeds, strict=True):
        for noise, t in zip(draws.noise, draws.timesteps, strict=True):
            noisy = pipeline.scheduler.add_noise(x[None], noise[None], t[None])
            without = loss(noisy, t, null_embeds, noise[None])
            gains.append(without - loss(noisy, t, embeds[None], noise[None]))
    by_draw = torch.stack(gains).reshape(len(latents), len(draws), *latents.shape[2:])
    return by_draw.mean(dim=1), by_draw.std(dim=1) / len(draws) ** 0.5


def inputs(
    pipeline: Pipeline, shape: tuple[int, int, int], n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random latents, and the embeddings of n prompts and of the null prompt."""
    latents = torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))
    prompts = [f"An image of {place}." for place in ("France", "Japan", "Perú")[:n]]
    return latents, pipeline.embed_prompts(prompts), pipeline.embed_prompts([""])


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 13), (4, 11, 9)])
def test_typicality_is_the_mean_difference_of_the_two_losses(
    pipeline: Pipeline, shape: tuple[int, int, int]
) -> None:
    draws = draw(42, shape, 4, (0.1, 0.7))
    latents, label_embeds, null_embeds = inputs(pipeline, shape, 2)
    expected, expected_error = by_definition(pipeline, latents, label_embeds, null_embeds, draws)

    mean, m2 = typicality(pipeline, latents, label_embeds, null_embeds, draws)
    assert mean.dtype == m2.dtype == torch.float32
    assert expected.abs().max() > 1000 * LOSS_ERROR  # or the next line would say little
    torch.testing.assert_close(mean.double(), expected, atol=LOSS_ERROR, rtol=0)
    standard_error = (m2 / (4 * 3)).sqrt().double()
    torch.testing.assert_close(standard_error, expected_error, atol=LOSS_ERROR, rtol=1e-3)


def test_a_label_that_says_nothing_has_no_typicality(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 2, (0.1, 0.7))
    latents, _, null_embeds = inputs(pipeline, (4, 8, 8), 2)
    mean, m2 = typicality(pipeline, latents, null_embeds.expand(2, -1, -1), null_embeds, draws)
    torch.testing.assert_close(mean, torch.zeros(2, 8, 8), atol=LOSS_ERROR, rtol=0)
    torch.testing.assert_close(m2, torch.zeros(2, 8, 8), atol=LOSS_ERROR, rtol=0)


def test_an_image_gets_the_same_map_alone_and_in_a_batch(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 2, (0.1, 0.7))
    latents, label_embeds, null_embeds = inputs(pipeline, (4, 8, 8), 3)
    together, _ = typicality(pipeline, latents, label_embeds, null_embeds, draws)
    for i in range(3):
        alone, _ = typicality(
            pipeline, latents[i : i + 1], label_embeds[i : i + 1], null_embeds, draws
        )
        torch.testing.assert_close(alone[0], together[i], atol=LOSS_ERROR, rtol=0)


def test_each_image_goes_twice_through_the_unet_per_draw(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 3, (0.1, 0.7))
    heard: list[int] = []
    before = pipeline.unet_forwards
    typicality(pipeline, *inputs(pipeline, (4, 8, 8), 2), draws, heard.append)
    assert pipeline.unet_forwards - before == sum(heard) == 2 * 3 * 2
    assert len(heard) == 3


def test_golden_output_of_this_version(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 3, (0.1, 0.7))
    mean, m2 = typicality(pipeline, *inputs(pipeline, (4, 8, 8), 1), draws)
    found = torch.stack([mean.std(), mean[0, 0, 0], mean[0, 4, 3], mean[0, 7, 7], m2.mean()])
    expected = torch.tensor([0.11007149, -0.01479591, -0.05550520, -0.17773420, 0.04635391])
    message = "if you changed the maths on purpose, raise typicality.ALGO and update these numbers"
    assert ALGO == "typicality-1", message
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=LOSS_ERROR, msg=lambda why: f"{message}\n{why}"
    )
