from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from diffusers import DDPMScheduler

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.typicality import ALGO
from diffmining_core.typicality.draws import Draws, draw
from diffmining_core.typicality.estimator import Estimate, typicality

# Each loss is about 1, the noise's variance, and float32 predictions differ from float64's, or with
# the number that go through the UNet together, by some 1e-6.
LOSS_ERROR = 5e-6

PAPER = (0.1, 0.7)
PLACES = ("France", "Japan", "Perú")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.fixture(scope="module")
def velocity_pipeline(pipeline: Pipeline) -> Pipeline:
    """The same network, its output read as the velocity of SD 2.x."""
    other = build(0)
    other.scheduler = DDPMScheduler.from_config(
        other.scheduler.config, prediction_type="v_prediction"
    )
    return other


@torch.no_grad()
def by_definition(
    pipeline: Pipeline,
    latents: torch.Tensor,
    label_embeds: torch.Tensor,
    image_of_pair: torch.Tensor,
    null_embeds: torch.Tensor,
    draws: Draws,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and standard error of the two losses' difference (eq. 3), and the mean loss without a
    label: pair by pair and draw by draw, all in float64, the UNet and the scheduler too."""
    unet = deepcopy(pipeline.unet).double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)

    def loss(x: torch.Tensor, t: int, embeds: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        signal, sigma = alpha_bar[t] ** 0.5, (1 - alpha_bar[t]) ** 0.5
        noisy = (signal * x + sigma * noise)[None]
        noise_pred = unet(noisy, t, encoder_hidden_states=embeds.double()[None]).sample
        if pipeline.scheduler.config.prediction_type == "v_prediction":
            noise_pred = signal * noise_pred + sigma * noisy
        squared: torch.Tensor = (noise_pred[0] - noise) ** 2
        return squared.mean(dim=0)

    gains, null_losses = [], []
    for embeds, image in zip(label_embeds, image_of_pair, strict=True):
        x = latents[image].double()
        for noise, t in zip(draws.noise.double(), draws.timesteps.tolist(), strict=True):
            without = loss(x, t, null_embeds[0], noise)
            null_losses.append(without.mean())
            gains.append(without - loss(x, t, embeds, noise))
    by_draw = torch.stack(gains).reshape(len(label_embeds), len(draws), *latents.shape[2:])
    null_loss = torch.stack(null_losses).reshape(len(label_embeds), len(draws)).mean(dim=1)
    groups = len(draws) // draws.together
    shape = (len(label_embeds), groups, draws.together, *latents.shape[2:])
    of_group = by_draw.reshape(shape).mean(dim=2)
    error = of_group.std(dim=1, correction=min(1, groups - 1)) / groups**0.5
    return by_draw.mean(dim=1), error, null_loss


def inputs(
    pipeline: Pipeline, shape: tuple[int, int, int], image_of_pair: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the estimator takes, draws aside: random latents, each pair under another label."""
    images = max(image_of_pair) + 1
    latents = torch.randn(images, *shape, generator=torch.Generator().manual_seed(5))
    prompts = [f"An image of {place}." for place in PLACES[: len(image_of_pair)]]
    return (
        latents,
        pipeline.embed_prompts(prompts),
        torch.tensor(image_of_pair),
        pipeline.embed_prompts([""]),
    )


@pytest.mark.parametrize(
    ("prediction", "shape", "image_of_pair"),
    [
        ("epsilon", (4, 8, 8), [0, 1]),
        ("epsilon", (4, 11, 9), [1, 0, 1]),
        ("epsilon", (4, 64, 94), [0]),  # a street view: its 94 columns can be halved but once
        ("v_prediction", (4, 8, 13), [0, 0, 1]),
    ],
)
def test_typicality_is_the_mean_difference_of_the_two_losses(
    pipeline: Pipeline,
    velocity_pipeline: Pipeline,
    prediction: str,
    shape: tuple[int, int, int],
    image_of_pair: list[int],
) -> None:
    model = pipeline if prediction == "epsilon" else velocity_pipeline
    n = 4 if shape[1] < 64 else 1
    draws = draw(42, shape, n, PAPER)
    given = inputs(model, shape, image_of_pair)
    expected, expected_error, expected_null_loss = by_definition(model, *given, draws)

    estimate = typicality(model, *given, draws)
    assert all(part.dtype == torch.float32 for part in estimate[:3])
    assert expected.abs().max() > 1000 * LOSS_ERROR  # or the next line would say little
    torch.testing.assert_close(estimate.mean.double(), expected, atol=LOSS_ERROR, rtol=0)
    if n > 1:
        groups = n // draws.together
        standard_error = (estimate.m2 / (n * (groups - 1))).sqrt().double()
        torch.testing.assert_close(standard_error, expected_error, atol=LOSS_ERROR, rtol=1e-3)
    torch.testing.assert_close(
        estimate.null_loss.double(), expected_null_loss, atol=LOSS_ERROR, rtol=0
    )


def test_a_label_that_says_nothing_has_no_typicality(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 2, PAPER)
    latents, _, image_of_pair, null_embeds = inputs(pipeline, (4, 8, 8), [0, 1])
    embeds = null_embeds.expand(2, -1, -1)
    mean, m2, *_ = typicality(pipeline, latents, embeds, image_of_pair, null_embeds, draws)
    torch.testing.assert_close(mean, torch.zeros(2, 8, 8), atol=LOSS_ERROR, rtol=0)
    torch.testing.assert_close(m2, torch.zeros(2, 8, 8), atol=LOSS_ERROR, rtol=0)


def assert_alike(estimate: Estimate, expected: Estimate) -> None:
    """Equal but for what the number that go through the UNet together does to the last bits."""
    for part, expected_part in zip(estimate[:3], expected[:3], strict=True):
        torch.testing.assert_close(part, expected_part, atol=LOSS_ERROR, rtol=1e-4)


def one_pair(estimate: Estimate, pair: int) -> Estimate:
    mean, m2, null_loss, _ = (None if part is None else part[pair][None] for part in estimate)
    assert mean is not None
    assert m2 is not None
    assert null_loss is not None
    return Estimate(mean, m2, null_loss, None)


def test_a_pair_gets_the_same_map_alone_and_in_company(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 2, PAPER)
    latents, label_embeds, image_of_pair, null_embeds = inputs(pipeline, (4, 8, 8), [1, 0, 1])
    together = typicality(pipeline, latents, label_embeds, image_of_pair, null_embeds, draws)
    for pair, image in enumerate(image_of_pair):
        alone = typicality(
            pipeline,
            latents[image][None],
            label_embeds[pair][None],
            torch.tensor([0]),
            null_embeds,
            draws,
        )
        assert_alike(alone, one_pair(together, pair))
    assert together.null_loss[0] == together.null_loss[2] != together.null_loss[1]


@pytest.mark.parametrize(
    ("at_once", "pieces"), [(None, [5]), (9, [5]), (5, [5]), (4, [4, 1]), (2, [2, 2, 1])]
)
def test_the_null_prediction_of_an_image_is_made_once_in_pieces_that_fit(
    pipeline: Pipeline, at_once: int | None, pieces: list[int]
) -> None:
    draws = draw(42, (4, 8, 8), 3, PAPER)
    given = inputs(pipeline, (4, 8, 8), [0, 1, 1])
    heard: list[int] = []
    before = pipeline.unet_forwards
    estimate = typicality(pipeline, *given, draws, heard.append, at_once)
    assert pipeline.unet_forwards - before == sum(heard) == 3 * (2 + 3)
    assert heard == 3 * pieces
    assert_alike(estimate, typicality(pipeline, *given, draws))


def test_golden_output_of_this_version(pipeline: Pipeline) -> None:
    draws = draw(42, (4, 8, 8), 6, PAPER)
    mean, m2, null_loss, _ = typicality(pipeline, *inputs(pipeline, (4, 8, 8), [0]), draws)
    values = [mean.std(), mean[0, 0, 0], mean[0, 4, 3], mean[0, 7, 7], m2.mean(), null_loss[0]]
    expected = [0.04288648, 0.00412108, -0.02338680, 0.00943428, 0.01807929, 1.04809439]
    message = "if you changed the maths on purpose, raise typicality.ALGO and update these numbers"
    assert ALGO == "typicality-3", message
    torch.testing.assert_close(
        torch.stack(values),
        torch.tensor(expected),
        rtol=1e-4,
        atol=LOSS_ERROR,
        msg=lambda why: f"{message}\n{why}",
    )
