from __future__ import annotations

import pytest
import torch

from diffmining_core.typicality.draws import (
    INDEPENDENT,
    PAIRED,
    STRATIFIED,
    draw,
    fixed_timestep,
    sample_posterior,
)

SHAPE = (4, 8, 9)
PAPER = (0.1, 0.7)


def test_the_first_draws_are_the_same_however_many_are_asked_for() -> None:
    few, many = draw(42, SHAPE, 5, PAPER), draw(42, SHAPE, 9, PAPER)
    assert len(few) == 5
    assert torch.equal(few.noise, many.noise[:5])
    assert torch.equal(few.timesteps, many.timesteps[:5])
    later = many.since(5)
    assert torch.equal(later.noise, many.noise[5:])
    assert torch.equal(later.timesteps, many.timesteps[5:])
    assert few.noise.shape == (5, *SHAPE)
    assert few.noise.dtype == torch.float32
    assert few.timesteps.dtype == torch.int64


def test_pairs_have_opposite_noise_at_one_timestep() -> None:
    draws = draw(42, SHAPE, 6, PAPER)
    assert draws.together == 2
    assert torch.equal(draws.noise[1::2], -draws.noise[::2])
    assert torch.equal(draws.timesteps[1::2], draws.timesteps[::2])
    assert len(set(draws.timesteps.tolist())) == 3
    single = draw(42, SHAPE, 3, PAPER)  # of one pair no spread could be told
    assert single.together == 1
    assert not torch.allclose(single.noise[1], -single.noise[0])


@pytest.mark.parametrize("pairs", [5, 10, 37])
def test_the_timesteps_of_any_number_of_pairs_are_spread_evenly(pairs: int) -> None:
    timesteps = draw(42, (1, 1, 1), 2 * pairs, (0, 1), spread=PAIRED).timesteps[::2]
    gaps = timesteps.sort().values.diff()
    # Of the multiples of the golden ratio no two are nearer or farther than this.
    assert 0.3 * 1000 / pairs < gaps.min()
    assert gaps.max() < 1.8 * 1000 / pairs


@pytest.mark.parametrize("spread", [INDEPENDENT, STRATIFIED])
def test_draws_that_are_no_pairs_have_each_a_noise_of_their_own(spread: str) -> None:
    draws = draw(0, (4, 16, 16), 20, PAPER, spread=spread)
    assert draws.together == 1
    assert torch.corrcoef(draws.noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.2


def test_draws_depend_on_seed_and_shape_and_on_no_global_state() -> None:
    one = draw(42, SHAPE, 2, PAPER)
    torch.manual_seed(7)
    assert torch.equal(draw(42, SHAPE, 2, PAPER).noise, one.noise)
    assert not torch.allclose(draw(43, SHAPE, 2, PAPER).noise, one.noise)
    turned = draw(42, (4, 9, 8), 2, PAPER).noise
    assert not torch.allclose(turned.flatten(), one.noise.flatten())


@pytest.mark.parametrize(
    ("t_range", "low", "high"),
    [((0.1, 0.7), 100, 699), ((0.0, 1.0), 0, 999), ((0.3, 0.4), 300, 399)],
)
@pytest.mark.parametrize("spread", [INDEPENDENT, PAIRED])
def test_timesteps_are_uniform_over_their_range(
    t_range: tuple[float, float], low: int, high: int, spread: str
) -> None:
    timesteps = draw(0, (1, 1, 1), 3000, t_range, spread=spread).timesteps.double()
    assert low <= timesteps.min() < low + 10
    assert high - 10 < timesteps.max() <= high
    width = high - low + 1  # the mean of 3000 lies within 4 of its standard errors
    assert abs(timesteps.mean() - (low + high) / 2) < 4 * width / (12 * 3000) ** 0.5


def test_a_range_of_one_timestep_gives_that_one() -> None:
    assert draw(0, (1, 1, 1), 4, (0.161, 0.162)).timesteps.tolist() == [161] * 4


def test_fixed_noise_is_that_of_the_first_draw_and_the_timesteps_are_as_ever() -> None:
    free = draw(42, SHAPE, 5, PAPER, spread=STRATIFIED)
    fixed = draw(42, SHAPE, 5, PAPER, fixed="noise")
    assert torch.equal(fixed.noise, free.noise[:1].expand(5, -1, -1, -1))
    assert torch.equal(fixed.timesteps, free.timesteps)


def test_a_fixed_timestep_is_the_same_for_every_shape_and_the_noise_is_as_ever() -> None:
    free, fixed = draw(42, SHAPE, 5, PAPER), draw(42, SHAPE, 5, PAPER, fixed="timestep")
    assert torch.equal(fixed.noise, free.noise)
    assert fixed.timesteps.tolist() == [fixed_timestep(42, PAPER)] * 5
    other_shape = draw(42, (4, 9, 8), 5, PAPER, fixed="timestep")
    assert torch.equal(other_shape.timesteps, fixed.timesteps)


def test_fixed_timesteps_of_many_seeds_cover_the_range() -> None:
    chosen = [fixed_timestep(seed, (0.3, 0.4)) for seed in range(300)]
    assert 300 <= min(chosen) < 305
    assert 395 <= max(chosen) < 400


def test_noise_is_standard_normal_and_draws_are_unlike() -> None:
    noise = draw(0, (4, 16, 16), 20, PAPER).noise
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 4 / (2 * noise.numel()) ** 0.5
    assert torch.corrcoef(noise[::2].flatten(1)).fill_diagonal_(0).abs().max() < 0.2


def test_an_images_posterior_sample_depends_only_on_seed_and_image_id() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.rand(2, 3, *SHAPE, generator=generator)
    together = sample_posterior(mean, std, 42, ["a", "b", "c"])
    for i, image_id in enumerate("abc"):
        alone = sample_posterior(mean[i : i + 1], std[i : i + 1], 42, [image_id])
        assert torch.equal(alone[0], together[i])
    noise = (together - mean) / std
    assert not torch.allclose(noise[0], noise[1])
    assert not torch.allclose(sample_posterior(mean, std, 43, ["a", "b", "c"]), together)


def test_a_posterior_without_spread_is_its_mean() -> None:
    mean = torch.ones(1, *SHAPE)
    assert torch.equal(sample_posterior(mean, torch.zeros_like(mean), 0, ["a"]), mean)
