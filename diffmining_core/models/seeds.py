"""Randomness that depends on names, not on order: the same for any batch, worker or retry."""

from __future__ import annotations

import hashlib

import torch


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `parts`; the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
