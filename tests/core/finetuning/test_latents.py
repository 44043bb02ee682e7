from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from diffmining_core.finetuning.latents import LatentCache


def test_what_one_process_put_there_another_gets_to_the_bit(tmp_path: Path) -> None:
    one, other = LatentCache(tmp_path, (4, 8, 8)), LatentCache(tmp_path, (4, 8, 8))
    mean, std = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one.put(1_000_000, mean, std)
    found = other.get(1_000_000)
    assert found is not None
    assert torch.equal(found[0], mean) and torch.equal(found[1], std)
    assert other.get(999_999) is None and other.get(2_000_000) is None
    used = sum((tmp_path / name).stat().st_blocks for name in ("latents", "marks"))
    assert used * 512 < 100_000, "what lies between takes no room"


def test_a_full_disk_ends_the_keeping_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = LatentCache(tmp_path, (1, 2, 2))
    ones = torch.ones(1, 2, 2)
    cache.put(0, ones, ones)

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        cache.put(1, ones, ones)
    cache.put(2, ones, ones)
    assert cache.get(0) is not None
    assert cache.get(1) is None and cache.get(2) is None
    assert [record.message for record in caplog.records] == [
        "no more latents are kept on disk, others are encoded anew: [Errno 28] No space left on "
        "device"
    ]
