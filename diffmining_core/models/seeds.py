"""Randomness that depends on names, not on order: the same for any batch, worker or retry."""

from __future__ import annotations

import hashlib
import math

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `parts`; the same on every machine."""
    return torch.Generator().manual_seed(_hashed(*parts) >> 1)


def uniform(*parts: object) -> float:
    """One number in [0, 1) that `parts` decide, of 53 random bits."""
    return (_hashed(*parts) >> 11) / 2**53


def standard_normal(
    shape: tuple[int, ...], *parts: object, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Standard normal float32 [*shape], drawn where it is needed: the same on every device.

    Philox 4×32-10 (Salmon et al. 2011) under a key that `parts` decide, counting from 0, and Box
    and Muller's transform in float64, whose last bit alone differs from device to device.
    """
    count = math.prod(shape)
    counter = torch.arange(-(-count // 4), dtype=torch.int64, device=device)
    words = philox(counter, _hashed(*parts))
    # In (0, 1]: the logarithm of none is infinite.
    unit = (torch.stack(words, dim=-1).double() + 1) / 2**32
    radius = (-2 * unit[:, 0::2].log()).sqrt()
    angle = 2 * math.pi * unit[:, 1::2]
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normal.flatten()[:count].reshape(shape).float()


def philox(
    counter: torch.Tensor, key: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random 32-bit words, int64 in [0, 2^32), for each `counter` int64 under a 64-bit key."""
    zero = torch.zeros_like(counter)
    a, b, c, d = counter & _WORD, counter >> 32, zero, zero
    keys = (key & _WORD, key >> 32)
    for _ in range(_ROUNDS):
        # The product of two words may pass for negative; its bits are right.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & _WORD) ^ b ^ keys[0],
            second & _WORD,
            ((first >> 32) & _WORD) ^ d ^ keys[1],
            first & _WORD,
        )
        keys = ((keys[0] + _WEYL[0]) & _WORD, (keys[1] + _WEYL[1]) & _WORD)
    return a, b, c, d


def _hashed(*parts: object) -> int:
    """64 bits that depend on every part."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
