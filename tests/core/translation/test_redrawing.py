from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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
from diffmining_core.translation import ALGO, shard
from diffmining_core.translation.inversion import invert, sampling_timesteps
from diffmining_core.translation.plug_and_play import Targets, redraw
from diffmining_core.translation.shard import (
    Reconstructed,
    Redrawn,
    TranslationOptions,
    forwards_of,
    original_size,
    shard_translations,
)

PAPER = TranslationOptions(
    PromptTemplate(), size=64, steps=50, inversion_stride=1, start="inverted", guidance=7.5
)
SHORT = replace(PAPER, steps=10, inversion_stride=50)
TARGETS = ["Almara", "Borvik", "Elsund"]


def redrawn(
    pipeline: Pipeline,
    images: list[ShardImage],
    options: TranslationOptions,
    batch_size: int = 8,
    targets: list[str] = TARGETS,
) -> dict[tuple[int, str], np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    made = shard_translations(pipeline, images, targets, options, batch_size)
    return {(one.place, one.label): one.pixels for one in made if isinstance(one, Redrawn)}


@pytest.fixture
def counted(tiny: Pipeline) -> Iterator[list[int]]:
    """What went through the UNet, as the pipeline counts it, since the test began."""
    before = tiny.unet_forwards
    count: list[int] = []
    yield count
    assert sum(count) == tiny.unet_forwards - before


def test_no_more_work_is_done_than_the_result_needs(
    tiny: Pipeline, drawn: list[ShardImage], counted: list[int]
) -> None:
    made = list(shard_translations(tiny, drawn[:1], TARGETS, PAPER, 8, counted.append))
    assert [one.label for one in made if isinstance(one, Redrawn)] == ["Borvik", "Elsund"]
    assert len(made) == 2, "the exact inversion is not sampled back for nothing"
    assert sum(counted) == 981 + 40 + 50 * 2 * 2 == forwards_of(PAPER, 2)
    assert forwards_of(replace(PAPER, start="official"), 10) == 999 + 40 + 50 * 2 * 10


def test_every_image_comes_under_every_label_but_its_own_at_its_size(
    tiny: Pipeline, drawn: list[ShardImage]
) -> None:
    made = redrawn(tiny, drawn, SHORT)
    assert made.keys() == {
        (place, label)
        for place, image in enumerate(drawn)
        for label in TARGETS
        if label != image.label
    }
    assert made[3, "Almara"].shape == (64, 83, 3)
    for (place, label), pixels in made.items():
        source = np.array(Image.open(drawn[place].uri)).astype(float)
        far = np.abs(pixels - source).mean()
        others = [one for (_, other), one in made.items() if other == label and one is not pixels]
        assert pixels.std() > 10
        assert all(far < np.abs(one - source).mean() for one in others if one.shape == source.shape)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing_but_roundings(
    tiny: Pipeline, drawn: list[ShardImage], batch_size: int, counted: list[int]
) -> None:
    targets = [len(set(TARGETS) - {image.label}) for image in drawn]
    needed = sum(forwards_of(SHORT, of_image) for of_image in targets)
    expected = redrawn(tiny, drawn, SHORT)
    made = redrawn(tiny, drawn, SHORT, batch_size)
    # Where an image's targets do not fit into one batch, each has the image as its source.
    at_most = max(1, batch_size - 1)
    again = sum(-(-of_image // at_most) - 1 for of_image in targets)
    counted += [needed, needed + 8 * again]
    assert list(made) == list(expected)
    for pair, pixels in made.items():
        assert np.abs(pixels.astype(int) - expected[pair]).max() <= 2, pair


def test_an_image_redrawn_under_its_own_label_stays_near_itself(
    tiny: Pipeline, drawn: list[ShardImage]
) -> None:
    """Near what the VAE makes of it; guidance towards a label is what takes it away."""
    source = load_pixels(drawn[0].uri, 64)
    decoded = tiny.decode(tiny.encode_pixels(source[None])[0])[0].astype(float)

    def far(label: str, guidance: float) -> float:
        named = replace(drawn[0], label="Elsund")  # its own would be no target
        # Two labels that are read alike: one is the source's, the other the same as a target.
        prompts = PromptTemplate(words={"Elsund": "Almara"})
        options = replace(SHORT, guidance=guidance, prompts=prompts)
        made = redrawn(tiny, [named], options, targets=[label])[0, label]
        return float(np.abs(made - decoded).mean())

    assert far("Almara", 1.0) < 6
    assert far("Borvik", 7.5) > 20


def test_the_official_start_is_another_image(tiny: Pipeline, drawn: list[ShardImage]) -> None:
    ours = redrawn(tiny, drawn[:1], SHORT)
    official = redrawn(tiny, drawn[:1], replace(SHORT, start="official"))
    assert ours.keys() == official.keys()
    assert all((ours[pair] != official[pair]).any() for pair in ours)


def test_a_shorter_inversion_says_how_well_images_come_back(
    tiny: Pipeline, drawn: list[ShardImage]
) -> None:
    def psnr(stride: int) -> list[float]:
        options = replace(SHORT, steps=10, inversion_stride=stride)
        made = shard_translations(tiny, drawn[:1], [], options, 8)
        return [one.psnr for one in made if isinstance(one, Reconstructed)]

    assert all(fine > coarse for fine, coarse in zip(psnr(50), psnr(100), strict=True))


def test_what_was_cropped_off_is_there_again() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    whole = original_size(pixels, 83, 64, 64)
    assert whole.shape == (64, 83, 3)
    assert (whole[:, :80] == pixels).all() and (whole[:, 80:] == pixels[:, 79:80]).all()
    larger = original_size(pixels, 166, 128, 64)
    assert larger.shape == (128, 166, 3)
    again = np.array(Image.fromarray(larger).resize((83, 64), Image.Resampling.LANCZOS))[:, :80]
    assert np.abs(again.astype(int) - pixels).mean() < 30


def test_an_image_that_is_gone_is_named(tiny: Pipeline, drawn: list[ShardImage]) -> None:
    gone = replace(drawn[0], uri="/nowhere/gone.png")
    with pytest.raises(ImageError, match=r"gone\.png is not there"):
        redrawn(tiny, [gone], SHORT)


@pytest.mark.parametrize(
    ("wanted", "rows", "expected"),
    [
        ([["a"], ["a"], ["a"]], 6, [[(0, "a"), (1, "a")], [(2, "a")]]),
        ([["a", "b", "c"]], 5, [[(0, "a"), (0, "b")], [(0, "c")]]),
        ([["a", "b"], []], 1, [[(0, "a")], [(0, "b")]]),
        ([], 8, []),
    ],
)
def test_batches_hold_whole_sources_where_they_can(
    wanted: list[list[str]], rows: int, expected: list[list[tuple[int, str]]]
) -> None:
    assert list(shard._packed(wanted, rows)) == expected


def test_golden(tiny: Pipeline) -> None:
    """Other pictures under the same ALGO would mix with those stored: raise it with them."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    drawn = torch.from_numpy(np.stack([np.sin(x / 9), np.cos(y / 7), np.sin(x / 5)], -1)).float()
    mean = tiny.encode_posterior(drawn.permute(2, 0, 1)[None])[0]
    embeds = tiny.embed_prompts(["An image of Almara.", "An image of Borvik."])
    timesteps = sampling_timesteps(10)
    inverted = invert(tiny, mean, embeds[:1], range(1, 902, 50), timesteps)
    targets = Targets(torch.tensor([0]), embeds[1:])
    null = tiny.embed_prompts([""])
    made = tiny.decode(redraw(tiny, inverted, inverted[901], targets, null, 10, 7.5))[0]
    found = [made.mean(), made.std(), made[16, 48, 0], made[40, 20, 1]]
    assert ALGO == "translation-2"
    np.testing.assert_allclose(found, [100.35, 62.19, 14, 81], atol=1.5)  # of 255


def test_a_redrawn_image_that_is_no_numbers_is_an_error(drawn: list[ShardImage]) -> None:
    pipeline = build(0)
    pipeline.unet.conv_in.weight.mul_(torch.nan)
    with pytest.raises(InputError, match=f"{drawn[0].image_id} redrawn as Borvik should be finite"):
        redrawn(pipeline, drawn[:1], SHORT, targets=["Borvik"])
