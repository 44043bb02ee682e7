"""Typicality in rounds: the same maps as in one go."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.street_scenes import draw_scene
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.store.maps import RaggedMaps
from diffmining_core.typicality.draws import together
from diffmining_core.typicality.estimator import windowed as windowed_by_torch
from diffmining_core.typicality.rounds import combined, rounds, windowed
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

WINDOW = 3
OPTIONS = TypicalityOptions(PromptTemplate(), 64, 14, (0.1, 0.7), 42, window=WINDOW)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ShardImage]:
    """Three scenes of two shapes, one of them under two labels."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for i, width in enumerate((64, 90, 64)):
        path = folder / f"{i}.png"
        draw_scene(np.random.default_rng(i), None, 96).image.crop((0, 0, width, 64)).save(path)
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        labels = ["here", "there"] if i == 1 else ["here"]
        rows += [ShardImage(image_id, str(path), label, width, 64) for label in labels]
    return rows


def measured(pipeline: Pipeline, images: list[ShardImage], draws: int, after: int) -> RaggedMaps:
    options = replace(OPTIONS, draws=draws, after=after)
    maps, _ = shard_typicality(pipeline, images, options, 2)
    found = [maps[place] for place in range(len(images))]
    return RaggedMaps.pack(
        [one.mean for one in found],
        [one.m2 for one in found],
        [one.null_loss for one in found],
        [image.image_id for image in images],
        [image.label for image in images],
        draws - after,
        together(draws),
        WINDOW,
        [one.window_m2 for one in found if one.window_m2 is not None],
    )


def test_rounds_grow_by_half_to_the_number_asked_for() -> None:
    assert rounds(100) == [8, 12, 18, 28, 42, 64, 100]
    assert rounds(8) == [8]
    assert rounds(5) == [5]
    assert rounds(20) == [8, 12, 20]
    for most in range(2, 300):
        found = rounds(most)
        assert found[-1] == most
        assert all(one < following for one, following in itertools.pairwise(found))
        assert all(draws % 2 == 0 for draws in found[:-1]), "pairs are not parted"


def test_maps_of_two_rounds_add_up_to_those_of_one(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    whole = measured(pipeline, images, 14, 0)
    first, further = measured(pipeline, images, 8, 0), measured(pipeline, images, 14, 8)
    assert (whole.together, further.n_draws.tolist()) == (2, [6] * 4)
    both = combined(first, further)
    assert both.n_draws.tolist() == [14] * 4
    for name in ("values", "m2", "window_m2", "null_loss"):
        found, expected = getattr(both, name), getattr(whole, name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert np.abs(first.values - whole.values).max() > 0.1 * np.abs(whole.values).max()


def test_the_error_of_a_window_is_that_of_the_mean_over_it(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    """By the maps of each pair of draws alone."""
    row = images[:1]
    alone = [measured(pipeline, row, last, last - 2).map(0) for last in range(4, 16, 2)]
    pairs = [2 * measured(pipeline, row, 4, 0).map(0) - alone[0], *alone]
    means = np.stack([windowed(pair, WINDOW) for pair in pairs])
    expected = means.std(axis=0, ddof=1) / 7**0.5
    found = measured(pipeline, row, 14, 0).window_error(0)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert found.shape == (8, 8)


@pytest.mark.parametrize(("shape", "window"), [((8, 11), 3), ((5, 4), 5), ((4, 4), 1), ((2, 9), 4)])
def test_windows_are_the_same_on_either_side(shape: tuple[int, int], window: int) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = windowed(values, window)
    assert found.shape == shape
    by_torch = windowed_by_torch(torch.from_numpy(values)[None], window)[0].numpy()
    np.testing.assert_allclose(found, by_torch, atol=1e-6)
    assert found[0, 0] == pytest.approx(values[:window, :window].mean(), abs=1e-6)


def test_maps_of_other_images_do_not_add_up(pipeline: Pipeline, images: list[ShardImage]) -> None:
    one, other = (measured(pipeline, [image], 4, 0) for image in (images[0], images[1]))
    with pytest.raises(ValueError, match="do not belong to the same images"):
        combined(one, other)
