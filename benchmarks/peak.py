"""What a device gives at most, what a UNet asks for, and how much memory was held."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from diffmining_core.features.dift import UP_BLOCK

TOKENS = 77
"""Of a prompt."""


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def product_tflops(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 7) -> float:
    """TFLOP/s of a product of two matrices of random numbers, the median of the repeats."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    products = 20 if device.type == "cuda" else 1  # in a row, so that the clock counts for nothing
    seconds = []
    for _ in range(repeats + 1):
        started = now(device)
        for _ in range(products):
            one @ other
        seconds.append((now(device) - started) / products)
    return 2 * side**3 / statistics.median(seconds[1:]) / 1e12  # the first one warms up


def forward_flops(config: Any, latent_hw: tuple[int, int]) -> int:
    """Floating-point operations (2 for a multiplication and addition) of one row's forward.

    Counted on a UNet of this configuration that has shapes and no numbers.
    """
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        _predicted(_empty_unet(config), latent_hw)
    return int(counted.get_total_flops())


def feature_flops(config: Any, latent_hw: tuple[int, int]) -> int:
    """The same of a forward that ends with the up block whose output DIFT takes."""
    unet = _empty_unet(config)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        _predicted(unet, latent_hw)
    of_module = {name: sum(by.values()) for name, by in counted.get_flop_counts().items()}
    root = type(unet).__name__
    behind = [f"{root}.up_blocks.{place}" for place in range(UP_BLOCK + 1, len(unet.up_blocks))]
    behind.append(f"{root}.conv_out")
    return int(counted.get_total_flops() - sum(of_module[name] for name in behind))


def training_flops(config: Any, latent_hw: tuple[int, int]) -> int:
    """The same of a forward and the backward pass through all weights."""
    with FlopCounterMode(display=False) as counted:
        _predicted(_empty_unet(config), latent_hw).sum().backward()  # type: ignore[no-untyped-call]
    return int(counted.get_total_flops())


def _empty_unet(config: Any) -> Any:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))


def _predicted(unet: Any, latent_hw: tuple[int, int]) -> torch.Tensor:
    with torch.device("meta"):
        noisy = torch.empty(1, unet.config.in_channels, *latent_hw)
        embeds = torch.empty(1, TOKENS, unet.config.cross_attention_dim)
        predicted: torch.Tensor = unet(noisy, torch.zeros(1), encoder_hidden_states=embeds).sample
    return predicted


def reset_peak(device: torch.device) -> None:
    """From now on `peak_gb` tells the most memory that is held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: torch.device) -> float:
    """Of tensors on a GPU, of the whole process on the CPU; 10⁹ bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024 / 1e9
