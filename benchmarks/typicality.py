"""Typicality as computed here against the plain research loop, side by side in one run.

    python -m benchmarks.typicality --images 32 --draws 20

The plain loop takes one image at a time, ten draws to a batch, a pass under the null prompt and
one under the label, and keeps every loss until the end. Both see the same draws, so that the maps
must agree; the two take turns, and the ratio of their times is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shards import ShardImage, images_of, index_shard
from diffmining_core.images.sources import open_source
from diffmining_core.images.street_scenes import COUNTRIES, write_dataset
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.draws import draw
from diffmining_core.typicality.shard import (
    Map,
    TypicalityOptions,
    sampled_latents,
    shard_typicality,
)

PLAIN_BATCH = 10


@torch.inference_mode()
def plain_loop(
    pipeline: Pipeline, images: Sequence[ShardImage], options: TypicalityOptions
) -> list[Map]:
    """Typicality one image at a time, as the released research code goes about it."""
    maps = []
    for image in images:
        pixels = load_pixels(image.uri, options.size)
        height, width = pixels.shape[:2]
        shape = (4, height // pipeline.cell, width // pipeline.cell)
        draws = draw(options.seed, shape, options.draws, options.t_range)
        prompts = [options.prompts.null, options.prompts.of(image.label)]
        embeds = pipeline.embed_prompts(prompts)
        losses: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for start in range(0, options.draws, PLAIN_BATCH):
            noise = draws.noise[start : start + PLAIN_BATCH]
            timesteps = draws.timesteps[start : start + PLAIN_BATCH]
            latents = sampled_latents(pipeline, [pixels], [image.image_id], options.seed)
            noisy = pipeline.add_noise(latents, noise, timesteps)
            for kept, prompt_embeds in zip(losses, embeds, strict=True):
                batch = prompt_embeds.expand(len(noise), -1, -1)
                noise_pred = pipeline.predict_noise(noisy, timesteps, batch)
                kept.append(((noise_pred - noise) ** 2).cpu())
        null_loss, label_loss = (torch.cat(kept) for kept in losses)
        maps.append((null_loss - label_loss).mean(dim=(0, 1)).numpy())
    return maps


def ours(
    pipeline: Pipeline, images: Sequence[ShardImage], options: TypicalityOptions, batch_size: int
) -> list[Map]:
    """Typicality as this project measures it."""
    maps, _ = shard_typicality(pipeline, images, options, batch_size)
    return [maps[place].mean for place in range(len(images))]


def timed(run: Callable[[], list[Map]]) -> tuple[float, list[Map]]:
    """Seconds and result of one call."""
    started = time.perf_counter()
    maps = run()
    return time.perf_counter() - started, maps


def main() -> None:
    """Measure both, a few times in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    pipeline = load_pipeline(arguments.model)
    options = TypicalityOptions(PromptTemplate(), 128, arguments.draws, (0.1, 0.7), 42)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), -(-arguments.images // len(COUNTRIES)), 0)
        found = islice(open_source(folder).images(), arguments.images)
        images = images_of(index_shard(list(found)))
        ratios, seconds = [], []
        for _ in range(arguments.rounds):
            plain_seconds, plain_maps = timed(lambda: plain_loop(pipeline, images, options))
            our_seconds, our_maps = timed(
                lambda: ours(pipeline, images, options, arguments.batch_size)
            )
            ratios.append(plain_seconds / our_seconds)
            seconds.append((plain_seconds, our_seconds))
    error = max(
        float(np.abs(our - plain).max()) for our, plain in zip(our_maps, plain_maps, strict=True)
    )
    scale = max(float(np.abs(plain).max()) for plain in plain_maps)
    forwards = 2 * arguments.draws * len(images)
    print(f"{len(images)} images, {arguments.draws} draws, {torch.get_num_threads()} threads")
    print("| | seconds | forwards a second |\n|---|---|---|")
    for name, column in (("plain loop", 0), ("here", 1)):
        median = statistics.median(row[column] for row in seconds)
        print(f"| {name} | {median:.1f} | {forwards / median:.0f} |")
    print(f"ratio of each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    print(f"largest difference of the maps: {error:.1e} of {scale:.1e}")


if __name__ == "__main__":
    main()
