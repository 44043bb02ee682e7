"""Maps with a known signal and a known noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffmining_core.store.maps import RaggedMaps

SIDE = 3
"""Of a patch in positions."""


def made_maps(
    signal: NDArray[np.floating], error: float, draws: int = 16, label: str = "barn", seed: int = 0
) -> RaggedMaps:
    """Maps [n, h, w] of the signal under `draws` draws, whose mean errs by `error` (its SD)."""
    rng = np.random.default_rng(seed)
    one_draw = error * np.sqrt(draws)
    samples = signal[None] + one_draw * rng.standard_normal((draws, *signal.shape))
    mean = samples.mean(axis=0)
    m2 = ((samples - mean) ** 2).sum(axis=0)
    n = len(signal)
    return RaggedMaps.pack(
        list(mean.astype(np.float32)),
        list(m2.astype(np.float32)),
        [0.2] * n,
        [f"{label} {i}" for i in range(n)],
        [label] * n,
        draws,
    )


def hills(n: int, height: float, seed: int = 1) -> NDArray[np.float64]:
    """Maps [n, 18, 21] of a hill each at a random place, `height` above a ground near 0."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:18, :21]
    places = rng.uniform((3, 3), (15, 18), (n, 2))
    squared = (down - places[:, :1, None]) ** 2 + (across - places[:, 1:, None]) ** 2
    return np.asarray(height * np.exp(-squared / 8))
