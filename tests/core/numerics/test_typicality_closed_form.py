"""The estimator on networks so simple that the expectation over noise and timesteps is known.

A network that says ε̂ = a·x_t + f(c), with any field f of the prompt, has at each latent position

    T = Σ_channels (f₀ - f_c) · (2 a E[s_t] x_0 + f₀ + f_c) / channels,

with s_t the share of the image in x_t = s_t x_0 + σ_t ε, and E the mean over the timesteps drawn
from; the noise enters its variance alone. The prompt embeddings carry the fields themselves, one
token per position.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.models.unet import KeysAndValues
from diffmining_core.typicality.draws import (
    ANTITHETIC,
    INDEPENDENT,
    PAIRED,
    STRATIFIED,
    Draws,
    draw,
)
from diffmining_core.typicality.estimator import Estimate, typicality

SHAPE = CHANNELS, H, W = 4, 4, 5
T_RANGE = LOW, HIGH = 0.1, 0.7
SLOPE = 0.8
IMAGE_OF_PAIR = [0, 1, 1]


class Affine(torch.nn.Module):
    """ε̂ = a·x_t + f(c), said as the noise or as the velocity, in the anatomy of a UNet.

    All is said in the middle; what cross-attention takes from a prompt is the prompt itself.
    """

    def __init__(self, scheduler: DDPMScheduler, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(SLOPE, dtype=dtype))
        self.said: list[torch.Tensor] = []
        self.given: list[torch.Tensor] = []
        self.mid_block = Middle(self, scheduler)
        self.down_blocks = self.up_blocks = torch.nn.ModuleList()
        self.time_proj = self.time_embedding = torch.nn.Identity()
        self.conv_norm_out = self.conv_act = self.conv_out = torch.nn.Identity()
        self.conv_in = Through(dtype)


class Through(torch.nn.Identity):
    """A convolution that changes nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.zeros(1, 1, 1, 1, dtype=dtype)


class Prompted(torch.nn.Module):
    """A cross-attention that takes its prompt as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 1
        self.to_k = self.to_v = torch.nn.Identity()


class Middle(torch.nn.Module):
    """The one block."""

    has_cross_attention = True

    def __init__(self, whole: Affine, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.attn2 = Prompted()
        self.whole, self.scheduler = [whole], scheduler  # in a list, so as not to be its part

    def forward(
        self, noisy: torch.Tensor, time: torch.Tensor, encoder_hidden_states: KeysAndValues
    ) -> torch.Tensor:
        (whole,) = self.whole
        whole.given.append(noisy)
        ((prompts, _),) = encoder_hidden_states
        assert noisy.dtype == prompts.dtype == whole.slope.dtype
        fields = prompts[:, 0].transpose(1, 2).reshape(noisy.shape)
        noise_pred: torch.Tensor = whole.slope * noisy + fields
        if self.scheduler.config.prediction_type == "v_prediction":
            # From x_t = s x_0 + σ ε and v = s ε - σ x_0.
            alpha_bar = self.scheduler.alphas_cumprod[int(time)]
            noise_pred = (noise_pred - (1 - alpha_bar).sqrt() * noisy) / alpha_bar.sqrt()
        whole.said.append(noise_pred)
        return noise_pred


def affine(prediction: str = "epsilon", dtype: torch.dtype = torch.float32) -> Pipeline:
    pipeline = build(0)
    pipeline.scheduler = DDPMScheduler.from_config(
        pipeline.scheduler.config, prediction_type=prediction
    )
    pipeline.unet = Affine(pipeline.scheduler, dtype)
    return pipeline


def random_inputs(
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of two images; fields of three pairs and of the null prompt, as embeddings."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, *SHAPE, generator=generator)
    fields = 0.3 * torch.randn(4, H * W, CHANNELS, generator=generator)
    return latents, fields[:3].to(dtype), torch.tensor(IMAGE_OF_PAIR), fields[3:].to(dtype)


def expected(scheduler: DDPMScheduler) -> tuple[torch.Tensor, torch.Tensor]:
    """Typicality [pairs, h, w] and null loss [pairs] in float64, from the formulas."""
    latents, label_embeds, image_of_pair, null_embeds = random_inputs()
    x0 = latents.double()[image_of_pair]
    f0, fc = (
        embeds.double().transpose(1, 2).reshape(-1, *SHAPE)
        for embeds in (null_embeds, label_embeds)
    )
    alpha_bar = scheduler.alphas_cumprod[round(1000 * LOW) : round(1000 * HIGH)].double()
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    mean = ((f0 - fc) * (2 * SLOPE * signal.mean() * x0 + f0 + fc)).mean(dim=1)
    null_loss = (
        (SLOPE * x0) ** 2 * (signal**2).mean()
        + 2 * SLOPE * signal.mean() * x0 * f0
        + f0**2
        + ((SLOPE * sigma - 1) ** 2).mean()
    )
    return mean, null_loss.mean(dim=(1, 2, 3))


def estimates(
    count: int, seeds: range, pipeline: Pipeline | None = None, spread: str = INDEPENDENT
) -> list[Estimate]:
    pipeline = pipeline or affine()
    inputs = random_inputs()
    return [
        typicality(pipeline, *inputs, draw(seed, SHAPE, count, T_RANGE, spread=spread))
        for seed in seeds
    ]


def root_mean_square(errors: torch.Tensor) -> float:
    return float(errors.square().mean().sqrt())


def test_the_estimate_comes_to_the_closed_form_with_the_root_of_the_draws() -> None:
    truth, null_truth = expected(affine().scheduler)
    few, many = (estimates(count, range(40)) for count in (20, 320))
    for part, known in (("mean", truth), ("null_loss", null_truth)):
        errors = [
            torch.stack([getattr(e, part).double() - known for e in found]) for found in (few, many)
        ]
        # Sixteen times the draws; of 40 seeds the ratio of two errors is known to some 15 %.
        assert 3 < root_mean_square(errors[0]) / root_mean_square(errors[1]) < 5.3
        # Unbiased: the mean over the seeds is nearer by their number.
        assert root_mean_square(errors[0].mean(dim=0)) < 2 * root_mean_square(errors[0]) / 40**0.5
    errors_of_many = torch.stack([estimate.mean.double() - truth for estimate in many])
    assert root_mean_square(truth) > 5 * root_mean_square(errors_of_many)  # it is seen at all


def test_the_standard_error_covers_the_truth_in_95_of_100_seeds() -> None:
    count = 50
    truth, _ = expected(affine().scheduler)
    covered = []
    for mean, m2, *_ in estimates(count, range(200)):
        standard_error = (m2 / (count * (count - 1))).sqrt()
        covered.append(((mean - truth).abs() < 2.01 * standard_error).float().mean())  # Student's t
    # 200 seeds give a share of 0.95 to 0.015 if a seed's positions all went together.
    assert 0.92 < float(torch.stack(covered).mean()) < 0.97


@pytest.mark.parametrize(
    ("spread", "most"), [(STRATIFIED, 0.98), (ANTITHETIC, 0.75), (PAIRED, 0.3)]
)
def test_draws_that_are_spread_leave_the_mean_as_it_is_and_less_of_its_error(
    spread: str, most: float
) -> None:
    """Here pairs cancel all of the noise: what is left is that of the timesteps."""
    truth, _ = expected(affine().scheduler)
    apart, spread_out = (
        torch.stack([e.mean.double() - truth for e in estimates(20, range(60), spread=how)])
        for how in (INDEPENDENT, spread)
    )
    assert root_mean_square(spread_out) < most * root_mean_square(apart)
    # Unbiased, and where most of the error is gone, of so many seeds.
    assert root_mean_square(spread_out.mean(dim=0)) < 2.5 * root_mean_square(spread_out) / 60**0.5


def test_the_standard_error_of_pairs_covers_the_truth_at_least_as_often_as_it_says() -> None:
    count = 50
    truth, _ = expected(affine().scheduler)
    covered = [
        ((mean - truth).abs() < 2.06 * (m2 / (count * (count / 2 - 1))).sqrt()).float().mean()
        for mean, m2, *_ in estimates(count, range(60), spread=ANTITHETIC)
    ]
    assert 0.91 < float(torch.stack(covered).mean()) < 0.985


def test_a_network_that_says_the_velocity_has_the_typicality_of_its_noise() -> None:
    for by_noise, by_velocity in zip(
        estimates(12, range(3)), estimates(12, range(3), affine("v_prediction")), strict=True
    ):
        for part, expected_part in zip(by_velocity[:3], by_noise[:3], strict=True):
            # Through v and back each prediction meets a division by s_t, at least 0.27 here.
            torch.testing.assert_close(part, expected_part, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_network_works_in_half_precision(dtype: torch.dtype) -> None:
    """From its predictions on all is float32: they give the same sums in float64."""
    pipeline = affine(dtype=dtype)
    draws = draw(7, SHAPE, 30, T_RANGE, spread=INDEPENDENT)
    estimate = typicality(pipeline, *random_inputs(dtype), draws)
    assert all(part.dtype == torch.float32 for part in estimate[:3])

    e0, ec = torch.split(torch.stack(pipeline.unet.said).double(), [2, 3], dim=1)
    assert pipeline.unet.said[0].dtype == dtype
    without = (e0 - draws.noise[:, None].double()) ** 2
    gains = (without[:, IMAGE_OF_PAIR] - (ec - draws.noise[:, None].double()) ** 2).mean(dim=2)
    torch.testing.assert_close(estimate.mean.double(), gains.mean(dim=0), atol=1e-6, rtol=1e-6)
    m2 = (gains - gains.mean(dim=0)).square().sum(dim=0)
    torch.testing.assert_close(estimate.m2.double(), m2, atol=1e-6, rtol=1e-5)
    null_loss = without.mean(dim=(0, 2, 3, 4))[IMAGE_OF_PAIR]
    torch.testing.assert_close(estimate.null_loss.double(), null_loss, atol=1e-6, rtol=1e-6)


def test_noise_is_added_in_float32_and_rounded_once() -> None:
    """The network is given the noised latents of float32, rounded to its precision."""
    pipeline = affine(dtype=torch.bfloat16)
    draws = draw(7, SHAPE, 3, T_RANGE)
    inputs = random_inputs(torch.bfloat16)
    typicality(pipeline, *inputs, draws)
    latents = inputs[0]
    for noisy, noise, t in zip(pipeline.unet.given, draws.noise, draws.timesteps, strict=True):
        alpha_bar = pipeline.scheduler.alphas_cumprod[t].double()
        exact = alpha_bar.sqrt() * latents.double() + (1 - alpha_bar).sqrt() * noise.double()
        torch.testing.assert_close(noisy[:2].double(), exact, atol=1e-6, rtol=2**-8)


def test_the_same_draw_twice_has_no_spread() -> None:
    one = draw(0, SHAPE, 1, T_RANGE)
    twice = Draws(one.noise.repeat(2, 1, 1, 1), one.timesteps.repeat(2))
    pipeline = affine()
    single, double = (typicality(pipeline, *random_inputs(), d) for d in (one, twice))
    assert torch.equal(double.mean, single.mean)
    assert torch.equal(double.m2, torch.zeros_like(single.m2))
