"""The (noise, timestep) pairs over which typicality is averaged.

Draws depend on the run's seed and the latent shape alone, so every image of one shape meets the
same ones, whatever the batch, the order, the machine or the retry (as the released research code
does with one global seed). Draw j is the same whether 10 or 1000 are asked for (but two or three).

Draws come in pairs of opposite noise at one timestep (antithetic), and the timesteps of any number
of pairs are spread evenly over their range (stratified). Both leave the mean that is estimated what
it is, and a third less of its variance (docs/speed.md); `independent` draws are the paper's.

To study where the variance comes from, one of the two can be held: `fixed` noise or timestep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.seeds import standard_normal, uniform

TRAIN_TIMESTEPS = 1000

NOISE, TIMESTEP = "noise", "timestep"
"""What all draws can share."""

PAIRED, STRATIFIED, ANTITHETIC, INDEPENDENT = "paired", "stratified", "antithetic", "independent"
"""How draws are spread: in both ways, in one, or not at all."""

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, without their whole parts, lie evenly between 0 and 1, however many they are."""


@dataclass(frozen=True)
class Draws:
    """`noise` float32 [n, channels, h, w] and `timesteps` int64 [n].

    together: how many in a row depend on one another: 2 for pairs, else 1.
    """

    noise: torch.Tensor
    timesteps: torch.Tensor
    together: int = 1

    def __len__(self) -> int:
        return len(self.timesteps)

    def since(self, first: int) -> Draws:
        """Those from place `first` on."""
        return Draws(self.noise[first:], self.timesteps[first:], self.together)


def draw(
    seed: int,
    latent_shape: tuple[int, int, int],
    count: int,
    t_range: tuple[float, float],
    fixed: str | None = None,
    device: torch.device | str = "cpu",
    spread: str = PAIRED,
) -> Draws:
    """`count` draws for latents of shape (channels, h, w), drawn on the device.

    Timesteps are uniform over the integers in [1000 · t_range[0], 1000 · t_range[1]), which for
    the paper's [0.1, 0.7] are 100 … 699. With `fixed` noise all draws have that of the first, with
    a fixed timestep all have `fixed_timestep`, which is the same for every latent shape; the other
    of the two is as in free draws.
    """
    size = together(count, fixed, spread)
    groups = range(-(-count // size))
    if fixed == NOISE:
        noise = standard_normal(latent_shape, seed, *latent_shape, 0, device=device)[None]
        noise = noise.expand(count, *latent_shape)
    else:
        noise = torch.stack(
            [standard_normal(latent_shape, seed, *latent_shape, g, device=device) for g in groups]
        )
        if size == 2:
            noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)[:count]
    if fixed == TIMESTEP:
        timestep_of = [fixed_timestep(seed, t_range) for _ in groups]
    elif spread in (PAIRED, STRATIFIED):
        start = uniform(seed, *latent_shape, "timesteps")
        timestep_of = [_timestep((start + g * GOLDEN) % 1, t_range) for g in groups]
    else:
        timestep_of = [
            _timestep(uniform(seed, *latent_shape, g, "timestep"), t_range) for g in groups
        ]
    timesteps = torch.tensor(timestep_of, device=device).repeat_interleave(size)[:count]
    return Draws(noise, timesteps, size)


def together(count: int, fixed: str | None = None, spread: str = PAIRED) -> int:
    """How many of `count` draws in a row depend on one another: those of a pair, or each on none.

    Of a single pair no spread could be told, so that two or three draws are no pairs.
    """
    return 2 if spread in (PAIRED, ANTITHETIC) and fixed != NOISE and count > 3 else 1


def fixed_timestep(seed: int, t_range: tuple[float, float]) -> int:
    """The one timestep of draws with a fixed one, uniform over the range."""
    return _timestep(uniform(seed, "fixed timestep"), t_range)


def _timestep(share: float, t_range: tuple[float, float]) -> int:
    """The integer at a share in [0, 1) of the range."""
    low, high = (round(TRAIN_TIMESTEPS * t) for t in t_range)
    return low + int(share * (high - low))


def sampled_latents(
    pipeline: Pipeline, pixels: npt.NDArray[np.uint8], image_ids: Sequence[str], seed: int
) -> torch.Tensor:
    """The VAE posterior sample float32 [n, channels, h, w] of images uint8 [n, H, W, 3].

    The same for one image wherever it is sampled, whatever the others.
    """
    mean, std = pipeline.encode_pixels(pixels)
    return sample_posterior(mean, std, seed, list(image_ids))


def sample_posterior(
    mean: torch.Tensor, std: torch.Tensor, seed: int, image_ids: list[str]
) -> torch.Tensor:
    """One sample of each image's VAE posterior, its noise decided by the seed and its id."""
    shape = tuple(mean.shape[1:])
    noise = [standard_normal(shape, seed, image_id, device=mean.device) for image_id in image_ids]
    return mean + std * torch.stack(noise)
