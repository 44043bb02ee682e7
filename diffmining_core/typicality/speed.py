"""How fast typicality is measured here: the estimator itself, for a few seconds, on no image.

In: a pipeline on its device and the size of the images. Out: UNet forwards a second, as a shard of
square images would take them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from diffmining_core.models.denoiser import rows_at_once
from diffmining_core.models.lanes import cores, in_lanes
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.typicality.draws import draw
from diffmining_core.typicality.estimator import typicality

SECONDS = 3.0
"""That the measured forwards should take; where two draws take longer, those are all."""
MOST_DRAWS = 64


def forwards_per_second(pipeline: Pipeline, size: int) -> float:
    """UNet forwards a second, images and prompts as many at once as in a run.

    Without what compiling a UNet gains on a GPU, so rather too few.
    """
    side = size // pipeline.cell
    shape = (int(pipeline.unet.config.in_channels), side, side)
    images = max(1, rows_at_once(pipeline, shape) // 2)
    lanes = cores() if pipeline.device.type == "cpu" else 1
    embeds = pipeline.embed_prompts(["", "An image."])

    def seconds(count: int) -> float:
        draws = draw(0, shape, count, (0.1, 0.7), device=pipeline.device)

        def work(latents: torch.Tensor) -> Callable[[], float]:
            estimate = typicality(
                pipeline,
                latents,
                embeds[1:].expand(images, -1, -1),
                torch.arange(images),
                embeds[:1],
                draws,
            )
            return lambda: float(estimate.mean.sum())

        started = time.monotonic()
        zeros = [torch.zeros(images, *shape)] * lanes
        list(in_lanes(pipeline.device, zeros, lambda latents: latents, work))
        return time.monotonic() - started

    count, took = 2, seconds(2)
    while took < SECONDS and count < MOST_DRAWS:  # the first ones warm up too
        count = min(MOST_DRAWS, max(2 * count, int(count * SECONDS / max(took, 1e-3))))
        took = seconds(count)
    return lanes * 2 * images * count / took
