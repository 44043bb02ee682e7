from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shards import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.typicality.draws import draw, sample_posterior
from diffmining_core.typicality.estimator import typicality
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

OPTIONS = TypicalityOptions(PromptTemplate(), size=64, draws=2, t_range=(0.1, 0.7), seed=42)
# Losses are about 1, and float32 predictions differ by some 1e-6 with the batch's size.
ERROR = 5e-6


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ShardImage]:
    """Two labels; square, wide, tall, and sides that give odd latents after resize and crop."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    found = []
    for i, (width, height) in enumerate([(64, 64), (100, 64), (64, 64), (70, 140), (64, 64)]):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        found.append(ShardImage(f"{i:032x}", str(path), ["here", "there"][i % 2], width, height))
    return found


def test_maps_have_the_shape_of_the_latents_and_the_order_of_the_images(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    before = pipeline.unet_forwards
    maps = shard_typicality(pipeline, images, OPTIONS, batch_size=2)
    assert pipeline.unet_forwards - before == 2 * OPTIONS.draws * len(images)
    shapes = [mean.shape for mean, _ in maps]
    assert shapes == [(8, 8), (8, 12), (8, 8), (16, 8), (8, 8)]
    assert all(mean.dtype == m2.dtype == np.float32 for mean, m2 in maps)


def test_maps_do_not_depend_on_batches_and_order(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    expected = shard_typicality(pipeline, images, OPTIONS, batch_size=1)
    assert np.abs(expected[0][0]).max() > 1000 * ERROR
    for order, batch_size in [([0, 1, 2, 3, 4], 8), ([3, 4, 2, 0, 1], 2)]:
        maps = shard_typicality(pipeline, [images[i] for i in order], OPTIONS, batch_size)
        for i, (mean, m2) in zip(order, maps, strict=True):
            np.testing.assert_allclose(mean, expected[i][0], atol=ERROR, rtol=0)
            np.testing.assert_allclose(m2, expected[i][1], atol=ERROR, rtol=1e-3)


def test_a_map_is_the_estimator_on_the_images_own_posterior_sample(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    image = images[1]
    pixels = torch.from_numpy(load_pixels(image.uri, 64)).permute(2, 0, 1)[None] / 127.5 - 1
    latents = sample_posterior(*pipeline.encode_posterior(pixels), 42, [image.image_id])
    expected, _ = typicality(
        pipeline,
        latents,
        pipeline.embed_prompts(["An image of there."]),
        pipeline.embed_prompts([""]),
        draw(42, (4, 8, 12), 2, (0.1, 0.7)),
    )
    (found,) = shard_typicality(pipeline, [image], OPTIONS, batch_size=1)
    np.testing.assert_allclose(found[0], expected[0].numpy(), atol=ERROR, rtol=0)


@pytest.mark.parametrize(
    "changed",
    [{"seed": 43}, {"t_range": (0.7, 0.9)}, {"prompts": PromptTemplate("A photo: {label}")}],
)
def test_seed_timesteps_and_prompts_change_a_map(
    pipeline: Pipeline, images: list[ShardImage], changed: dict[str, object]
) -> None:
    options = replace(OPTIONS, draws=1)
    (one,) = shard_typicality(pipeline, images[:1], options, 1)
    (other,) = shard_typicality(pipeline, images[:1], replace(options, **changed), 1)  # type: ignore[arg-type] # mypy cannot follow the keywords
    assert np.abs(one[0] - other[0]).max() > 1000 * ERROR
