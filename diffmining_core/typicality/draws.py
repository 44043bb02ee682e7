"""The (noise, timestep) pairs over which typicality is averaged.

Draws depend on the run's seed and the latent shape alone, so every image of one shape meets the
same ones, whatever the batch, the order, the machine or the retry (as the released research code
does with one global seed). Draw j is the same whether 10 or 1000 are asked for.

To study where the variance comes from, one of the two can be held: `fixed` noise or timestep.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffmining_core.models.seeds import seeded

TRAIN_TIMESTEPS = 1000

NOISE, TIMESTEP = "noise", "timestep"
"""What all draws can share."""


@dataclass(frozen=True)
class Draws:
    """`noise` float32 [n, channels, h, w] and `timesteps` int64 [n]."""

    noise: torch.Tensor
    timesteps: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def draw(
    seed: int,
    latent_shape: tuple[int, int, int],
    count: int,
    t_range: tuple[float, float],
    fixed: str | None = None,
) -> Draws:
    """`count` draws for latents of shape (channels, h, w).

    Timesteps are uniform over the integers in [1000 · t_range[0], 1000 · t_range[1]), which for
    the paper's [0.1, 0.7] are 100 … 699. With `fixed` noise all draws have that of the first, with
    a fixed timestep all have `fixed_timestep`, which is the same for every latent shape; the other
    of the two is as in free draws.
    """
    low, high = (round(TRAIN_TIMESTEPS * t) for t in t_range)
    noise, timesteps = [], []
    for j in range(count):
        generator = seeded(seed, *latent_shape, j)
        timesteps.append(torch.randint(low, high, (), generator=generator))
        noise.append(torch.randn(latent_shape, generator=generator))
    if fixed == NOISE:
        noise = noise[:1] * count
    elif fixed == TIMESTEP:
        timesteps = [torch.tensor(fixed_timestep(seed, t_range))] * count
    return Draws(torch.stack(noise), torch.stack(timesteps))


def fixed_timestep(seed: int, t_range: tuple[float, float]) -> int:
    """The one timestep of draws with a fixed one, uniform over the range."""
    low, high = (round(TRAIN_TIMESTEPS * t) for t in t_range)
    return int(torch.randint(low, high, (), generator=seeded(seed, "fixed timestep")))


def sample_posterior(
    mean: torch.Tensor, std: torch.Tensor, seed: int, image_ids: list[str]
) -> torch.Tensor:
    """One sample of each image's VAE posterior, drawn from a generator seeded by its id."""
    noise = [
        torch.randn(mean.shape[1:], generator=seeded(seed, image_id)) for image_id in image_ids
    ]
    return mean + std * torch.stack(noise).to(mean)
