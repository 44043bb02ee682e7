"""The plain research loop of the benchmarks comes to what the project comes to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffmining_core.features.dift import image_features
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.translation.inversion import invert, sampling_timesteps
from diffmining_core.translation.plug_and_play import Targets, redraw
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

REPOSITORY = Path(__file__).parents[3]
PROMPTS = PromptTemplate()
SEED = 42


@pytest.fixture(autouse=True)
def repository_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are no part of the installed package."""
    monkeypatch.syspath_prepend(str(REPOSITORY))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


def test_the_plain_loop_comes_to_the_same_maps(pipeline: Pipeline, tmp_path: Path) -> None:
    from benchmarks.pictures import draw_pictures
    from benchmarks.plain_loop import plain_typicality

    pictures = draw_pictures(tmp_path, (64, 72), 2)
    plain = plain_typicality(pipeline, pictures, PROMPTS, 12, (0.1, 0.7), SEED, tmp_path)
    maps, _ = shard_typicality(
        pipeline,
        [ShardImage(one.image_id, str(one.path), one.label, 72, 64) for one in pictures],
        TypicalityOptions(PROMPTS, 64, 12, (0.1, 0.7), SEED),
        0,
    )
    for place, picture in enumerate(pictures):
        # Rounding of the losses, which are near 1: far below the maps' own standard error.
        np.testing.assert_allclose(plain[place].mean, maps[place].mean, rtol=0, atol=2e-6)
        losses = np.load(tmp_path / f"{picture.image_id}.npy")
        assert losses.shape == (12, 2, 4, 8, 9)
        assert plain[place].stored == losses.nbytes


def test_the_plain_loop_comes_to_the_same_features(pipeline: Pipeline, tmp_path: Path) -> None:
    from benchmarks.pictures import draw_pictures
    from benchmarks.plain_loop import plain_features

    (picture,) = draw_pictures(tmp_path, (64, 64), 1)
    patches = [(0, 0), (31, 20)]
    plain = plain_features(pipeline, picture, PROMPTS, patches, 32, SEED)
    embeds = pipeline.embed_prompts([PROMPTS.of(picture.label)])[0]
    ours = image_features(pipeline, picture.pixels(), embeds, patches, 32, SEED, picture.image_id)
    np.testing.assert_allclose(plain, ours, rtol=0, atol=1e-5)


def test_the_plain_loop_redraws_the_same_image(pipeline: Pipeline, tmp_path: Path) -> None:
    from benchmarks.pictures import draw_pictures
    from benchmarks.plain_loop import plain_inversion, plain_redrawing

    (picture,) = draw_pictures(tmp_path, (64, 64), 1)
    timesteps = sampling_timesteps(5)
    plain_inverted = plain_inversion(pipeline, picture, PROMPTS, timesteps[::-1])
    plain = plain_redrawing(pipeline, plain_inverted, "Almara", PROMPTS, 7.5)

    latents, _ = pipeline.encode_pixels(picture.pixels()[None])
    source, target, null = pipeline.embed_prompts(
        [PROMPTS.of(picture.label), PROMPTS.of("Almara"), PROMPTS.null]
    ).chunk(3)
    inverted = invert(pipeline, latents, source, timesteps[::-1], timesteps)
    start = inverted[timesteps[0]]
    ours = redraw(pipeline, inverted, start, Targets(torch.tensor([0]), target), null, 5, 7.5)
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-3)


def test_a_quick_run_says_something_of_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import speed
    from benchmarks.speed_parts import PARTS
    from benchmarks.speed_table import read_tables

    command = ["speed", "--device", "cpu", "--quick", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    speed.main()

    (table,) = read_tables(tmp_path)
    assert {row.part for row in table.rows} == set(PARTS)
    for row in table.rows:
        assert row.missing or (row.here is not None and row.here > 0), row.what
    markdown = (tmp_path / "speed-cpu.md").read_text(encoding="utf-8")
    assert all(row.what in markdown for row in table.rows)
    assert (tmp_path / "speed.svg").read_text(encoding="utf-8").startswith("<svg")
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.width == 1920
