from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffmining_core.errors import ImageError, InputError
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.typicality.draws import draw, sampled_latents
from diffmining_core.typicality.estimator import typicality
from diffmining_core.typicality.shard import RowMap, TypicalityOptions, shard_typicality

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
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        label = ["here", "there"][i % 2]
        found.append(ShardImage(image_id, str(path), label, width, height, declared=False))
    return found


def measured(
    pipeline: Pipeline, images: list[ShardImage], options: TypicalityOptions, batch_size: int
) -> list[RowMap]:
    """The maps of images that are all good."""
    maps, set_aside = shard_typicality(pipeline, images, options, batch_size)
    assert set_aside == {}
    return [maps[place] for place in range(len(images))]


def test_maps_have_the_shape_of_the_latents_and_the_order_of_the_images(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    before = pipeline.unet_forwards
    maps = measured(pipeline, images, OPTIONS, 2)
    assert pipeline.unet_forwards - before == 2 * OPTIONS.draws * len(images)
    shapes = [row.mean.shape for row in maps]
    assert shapes == [(8, 8), (8, 12), (8, 8), (16, 8), (8, 8)]
    assert all(row.mean.dtype == row.m2.dtype == np.float32 for row in maps)


def assert_alike(maps: list[RowMap], expected: list[RowMap]) -> None:
    """Equal but for what the number that go through the UNet together does to the last bits."""
    for row, expected_row in zip(maps, expected, strict=True):
        np.testing.assert_allclose(row.mean, expected_row.mean, atol=ERROR, rtol=0)
        np.testing.assert_allclose(row.m2, expected_row.m2, atol=ERROR, rtol=1e-3)
        np.testing.assert_allclose(row.null_loss, expected_row.null_loss, atol=ERROR, rtol=0)


def test_maps_do_not_depend_on_batches_and_order(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    expected = measured(pipeline, images, OPTIONS, 1)
    assert np.abs(expected[0].mean).max() > 1000 * ERROR
    for order, batch_size in [([0, 1, 2, 3, 4], 8), ([3, 4, 2, 0, 1], 2)]:
        maps = measured(pipeline, [images[i] for i in order], OPTIONS, batch_size)
        assert_alike(maps, [expected[i] for i in order])


def test_maps_of_one_batch_size_are_the_same_bits_in_any_shard(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    """At one image a batch nothing meets another, so shards and their order leave no trace."""
    expected = measured(pipeline, images, OPTIONS, 1)
    found = [
        *measured(pipeline, images[3:], OPTIONS, 1),
        *measured(pipeline, images[:3], OPTIONS, 1),
    ]
    for row, expected_row in zip(found, [*expected[3:], *expected[:3]], strict=True):
        np.testing.assert_array_equal(row.mean, expected_row.mean)
        np.testing.assert_array_equal(row.m2, expected_row.m2)
        assert row.null_loss == expected_row.null_loss


@pytest.fixture
def labelled(images: list[ShardImage]) -> list[ShardImage]:
    """The images, the first under three labels, the second and the last under two."""
    labels = [["here", "there", "nowhere"], ["here", "there"], ["here"], ["there"], ["a", "b"]]
    return [
        replace(image, label=label)
        for image, own in zip(images, labels, strict=True)
        for label in own
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_labels_of_an_image_share_its_null_predictions(
    pipeline: Pipeline, labelled: list[ShardImage], batch_size: int
) -> None:
    """Each row's map is that of the image under that label alone; N (images + rows) forwards."""
    largest = 0

    def look(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, len(arguments[0]))

    before = pipeline.unet_forwards
    heard: list[int] = []
    with_hook = pipeline.unet.conv_in.register_forward_pre_hook(look)
    maps, _ = shard_typicality(pipeline, labelled, OPTIONS, batch_size, heard.append)
    with_hook.remove()
    assert pipeline.unet_forwards - before == sum(heard) == OPTIONS.draws * (5 + 9)
    assert largest <= 2 * batch_size

    for place, row in enumerate(labelled):
        assert_alike([maps[place]], measured(pipeline, [row], OPTIONS, 1))
    assert maps[0].null_loss == maps[1].null_loss == maps[2].null_loss != maps[5].null_loss


def test_the_rows_of_an_image_need_not_lie_together(
    pipeline: Pipeline, labelled: list[ShardImage]
) -> None:
    order = np.random.default_rng(0).permutation(len(labelled))
    before = pipeline.unet_forwards
    maps = measured(pipeline, [labelled[i] for i in order], OPTIONS, 2)
    assert pipeline.unet_forwards - before == OPTIONS.draws * (5 + 9)
    expected = measured(pipeline, labelled, OPTIONS, 2)
    assert_alike(maps, [expected[i] for i in order])


def test_all_rows_of_an_image_that_cannot_be_used_are_set_aside(
    pipeline: Pipeline, labelled: list[ShardImage]
) -> None:
    gone = [
        replace(row, uri=row.uri + ".gone", declared=True) if i < 3 else row
        for i, row in enumerate(labelled)
    ]
    maps, set_aside = shard_typicality(pipeline, gone, OPTIONS, 2)
    assert sorted(maps) == list(range(3, 9))
    assert sorted(set_aside) == [0, 1, 2]
    assert len(set(set_aside.values())) == 1


def test_a_map_is_the_estimator_on_the_images_own_posterior_sample(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    image = images[1]
    pixels = load_pixels(image.uri, 64)
    latents = sampled_latents(pipeline, pixels[None], [image.image_id], 42)
    mean, m2, null_loss, _ = typicality(
        pipeline,
        latents,
        pipeline.embed_prompts(["An image of there."]),
        torch.tensor([0]),
        pipeline.embed_prompts([""]),
        draw(42, (4, 8, 12), 2, (0.1, 0.7)),
    )
    (found,) = measured(pipeline, [image], OPTIONS, 1)
    assert_alike([found], [RowMap(mean[0].numpy(), m2[0].numpy(), float(null_loss[0]), None)])


@pytest.mark.parametrize(
    "changed",
    [{"seed": 43}, {"t_range": (0.7, 0.9)}, {"prompts": PromptTemplate("A photo: {label}")}],
)
def test_seed_timesteps_and_prompts_change_a_map(
    pipeline: Pipeline, images: list[ShardImage], changed: dict[str, object]
) -> None:
    options = replace(OPTIONS, draws=1)
    (one,) = measured(pipeline, images[:1], options, 1)
    (other,) = measured(pipeline, images[:1], replace(options, **changed), 1)  # type: ignore[arg-type] # mypy cannot follow the keywords
    assert np.abs(one.mean - other.mean).max() > 1000 * ERROR


@pytest.fixture
def spoilt(images: list[ShardImage], tmp_path: Path) -> list[ShardImage]:
    """As the images, but the first is gone, the second is cut short, the third is another image
    and the last has not the size that is declared."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(images[1].uri).read_bytes()[:-100])
    return [
        replace(images[0], uri=str(tmp_path / "gone.png")),
        replace(images[1], uri=str(cut), image_id=_id_of(cut)),
        replace(images[2], uri=images[4].uri),
        images[3],
        replace(images[4], width=128),
    ]


def _id_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def test_declared_images_that_prove_unusable_are_set_aside_and_the_others_measured(
    pipeline: Pipeline, images: list[ShardImage], spoilt: list[ShardImage]
) -> None:
    declared = [replace(image, declared=True) for image in spoilt]
    maps, set_aside = shard_typicality(pipeline, declared, OPTIONS, 8)
    assert sorted(maps) == [3]
    (expected,) = measured(pipeline, images[3:4], OPTIONS, 8)
    np.testing.assert_array_equal(maps[3].mean, expected.mean)
    assert sorted(set_aside) == [0, 1, 2, 4]
    for place, words in {0: "gone", 1: "truncated", 2: "has changed", 4: "is not 128 × 64"}.items():
        assert words in set_aside[place].lower()
        assert spoilt[place].uri in set_aside[place]


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_an_image_that_was_good_when_indexed_is_missed(
    pipeline: Pipeline, spoilt: list[ShardImage], place: int
) -> None:
    with pytest.raises(ImageError, match=spoilt[place].uri):
        shard_typicality(pipeline, [spoilt[place], spoilt[3]], OPTIONS, 8)


def test_another_seed_of_the_draws_leaves_the_images_as_they_are(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    """With one seed for images and draws, both would differ."""
    own = measured(pipeline, images, OPTIONS, 2)
    same = measured(pipeline, images, replace(OPTIONS, draws_seed=OPTIONS.seed), 2)
    assert_alike(own, same)
    other = measured(pipeline, images, replace(OPTIONS, draws_seed=7), 2)
    image = images[0]
    pixels = load_pixels(image.uri, 64, image.image_id)
    latents = sampled_latents(pipeline, pixels[None], [image.image_id], OPTIONS.seed)
    expected = typicality(
        pipeline,
        latents,
        pipeline.embed_prompts([OPTIONS.prompts.of(image.label)]),
        torch.tensor([0]),
        pipeline.embed_prompts([OPTIONS.prompts.null]),
        draw(7, (4, 8, 8), OPTIONS.draws, OPTIONS.t_range),
    )
    np.testing.assert_allclose(other[0].mean, expected.mean[0].numpy(), atol=ERROR, rtol=0)
    assert not np.allclose(other[0].mean, own[0].mean, atol=10 * ERROR)


def test_what_all_draws_share_reaches_the_maps(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    """Of draws that are all alike, no position deviates from its mean."""
    one_step = replace(OPTIONS, t_range=(0.3, 0.301))
    free = measured(pipeline, images[:1], one_step, 1)
    fixed = measured(pipeline, images[:1], replace(one_step, fixed="noise"), 1)
    assert free[0].m2.max() > ERROR
    assert fixed[0].m2.max() < ERROR**2


def test_a_unet_that_leaves_the_range_of_its_precision_is_an_error(
    images: list[ShardImage],
) -> None:
    pipeline = build(0)
    pipeline.unet.conv_in.weight.mul_(1e5)
    measured(pipeline, images[:1], OPTIONS, 1)  # float32 holds it
    pipeline.unet.half()
    with pytest.raises(InputError, match=f"{images[0].image_id} .* float16 .* --precision bfloat1"):
        measured(pipeline, images[:1], OPTIONS, 1)
