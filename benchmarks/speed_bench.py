"""The bench on which speed is measured: settings, pipelines, turns with the plain loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.full_size import full_size
from benchmarks.peak import forward_flops, peak_gb, product_tflops, reset_peak
from benchmarks.pictures import Picture, draw_pictures
from benchmarks.speed_table import Row
from diffmining_core.models.denoiser import rows_at_once
from diffmining_core.models.pipelines import Pipeline, load_pipeline


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    model: str
    """`tiny`, or `full` for Stable Diffusion 1.5's shapes with random weights."""
    device: torch.device
    sizes: tuple[tuple[int, int], ...]
    """Height and width in pixels."""
    images: int
    """That we measure at a time; 0 for two batches of what the device takes."""
    plain_images: int
    """That the plain loop measures, which takes one at a time: its rate is that of any number."""
    draws: int
    rounds: int
    product_side: int
    sources: int
    """Images that are inverted together; 0 for as many as mining takes."""
    targets: int
    """Labels that each is redrawn under."""
    steps: int
    """Of DDIM that are measured, of 50."""
    train_batch: int
    train_steps: int
    maps: int
    """Scored for patches."""
    kmeans_labels: int
    kmeans_points: int
    shards: int
    shard_images: int
    workers: int
    worker_images: int

    @property
    def precision(self) -> torch.dtype:
        """Of our UNet: what `--device auto` takes."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def settings_for(device: torch.device, model: str, quick: bool) -> Settings:
    """The usual ones of a device; a quick run says only that everything works."""
    on_gpu = device.type == "cuda"
    usual = Settings(
        model=model,
        device=device,
        sizes=((256, 256), (512, 512), (512, 752)) if model == "full" else ((128, 128),),
        images=0 if on_gpu else 32,
        plain_images=4 if on_gpu else 8,
        draws=50 if on_gpu else 20,
        rounds=2 if on_gpu else 3,
        product_side=8192 if on_gpu else 1536,
        sources=0,
        targets=10,
        steps=10,
        train_batch=8,
        train_steps=8,
        maps=300,
        kmeans_labels=3,
        kmeans_points=1000,
        shards=4 if on_gpu else 8,
        shard_images=64 if on_gpu else 16,
        workers=2,
        worker_images=24,
    )
    if model == "full" and not on_gpu:  # larger images, or more of them, would take hours
        usual = replace(usual, sizes=((256, 256),), images=2, plain_images=1, draws=2, rounds=1)
        usual = replace(usual, targets=1, steps=5, train_batch=1, train_steps=1)
        usual = replace(usual, shards=2, shard_images=1)
    if not quick:
        return usual
    return replace(
        usual,
        sizes=((64, 64),),
        images=2,
        plain_images=2,
        draws=2,
        rounds=1,
        product_side=256,
        sources=1,
        targets=1,
        steps=5,
        train_batch=2,
        train_steps=1,
        maps=4,
        kmeans_labels=1,
        kmeans_points=64,
        shards=2,
        shard_images=1,
        workers=0,
        worker_images=0,
    )


class Bench:
    """The pipelines, the pictures and the measured product, made when they are first asked for."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._flops: dict[tuple[int, int], int] = {}

    @cached_property
    def plain(self) -> Pipeline:
        """In float32; the plain loop lowers it by autocast."""
        return loaded(self.settings.model, self.settings.device, torch.float32)

    @cached_property
    def ours(self) -> Pipeline:
        """In the precision that mining takes on the device."""
        return loaded(self.settings.model, self.settings.device, self.settings.precision)

    @cached_property
    def product(self) -> float:
        """TFLOP/s of a matrix product in our precision."""
        settings = self.settings
        return product_tflops(settings.device, settings.precision, settings.product_side)

    @cached_property
    def plain_product(self) -> float:
        """The same in the plain loop's."""
        settings = self.settings
        if settings.device.type != "cuda":
            return self.product
        return product_tflops(settings.device, torch.float16, settings.product_side)

    def pictures(self, hw: tuple[int, int], count: int) -> list[Picture]:
        """So many of one size."""
        return draw_pictures(self.folder, hw, count)

    def latent_shape(self, hw: tuple[int, int]) -> tuple[int, int, int]:
        """Of the latents of images: channels, h, w."""
        channels = int(self.ours.unet.config.in_channels)
        return channels, hw[0] // self.ours.cell, hw[1] // self.ours.cell

    def images_of(self, hw: tuple[int, int]) -> int:
        """How many are measured at a time."""
        return self.settings.images or rows_at_once(self.ours, self.latent_shape(hw))

    def forward_flops(self, hw: tuple[int, int]) -> int:
        """Operations of one row of images of that size, counted once."""
        if hw not in self._flops:
            self._flops[hw] = forward_flops(self.ours.unet.config, self.latent_shape(hw)[1:])
        return self._flops[hw]

    @property
    def training_size(self) -> tuple[int, int]:
        """The largest square."""
        return max(hw for hw in self.settings.sizes if hw[0] == hw[1])


def loaded(model: str, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline of that name on a device, its UNet in that precision."""
    if model == "tiny":
        return load_pipeline("tiny", device, dtype)
    return full_size(device, dtype)


@dataclass(frozen=True)
class Compared:
    """Images a second of each round, and the most memory of each side."""

    plain: list[float]
    ours: list[float]
    plain_memory: float
    memory: float

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours to the plain loop's, round by round."""
        return tuple(ours / plain for plain, ours in zip(self.plain, self.ours, strict=True))


def compare(bench: Bench, plain: Callable[[], float], ours: Callable[[], float]) -> Compared:
    """The rates that both give, in turns; each has been warmed up."""
    device = bench.settings.device
    rates: tuple[list[float], list[float]] = ([], [])
    memory = [0.0, 0.0]
    for _ in range(bench.settings.rounds):
        for side, measure in enumerate((plain, ours)):
            reset_peak(device)
            rates[side].append(measure())
            memory[side] = max(memory[side], peak_gb(device))
    return Compared(*rates, *memory)


def compared_row(
    bench: Bench,
    part: str,
    what: str,
    compared: Compared,
    forwards: tuple[float, float],
    flops: tuple[int, int],
    note: str,
) -> Row:
    """The row of images a second.

    forwards: those of an image in the plain loop and here; flops: of one of them.
    """
    plain, here = statistics.median(compared.plain), statistics.median(compared.ours)
    tflops = [rate * forwards[side] * flops[side] / 1e12 for side, rate in enumerate((plain, here))]
    return Row(
        part,
        what,
        "images/s",
        plain,
        here,
        compared.ratios,
        plain * forwards[0],
        here * forwards[1],
        tflops[0],
        tflops[1],
        tflops[0] / bench.plain_product,
        tflops[1] / bench.product,
        compared.plain_memory,
        compared.memory,
        note,
    )
