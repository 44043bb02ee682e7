"""What half precision does to typicality and to the patches it chooses, on the built-in model.

The model knows the scenes' elements by name (not their countries), so each scene is mined for one
of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from diffmining_core.images.street_scenes import draw_scene
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.patches.scoring import patch_scores, pick_patches
from diffmining_core.typicality.draws import draw, sampled_latents
from diffmining_core.typicality.estimator import typicality

SIZE, PATCH, PER_IMAGE, DRAWS, BATCH = 128, 16, 5, 2, 16
SCENES, TOP = 208, 500

Maps = npt.NDArray[np.float32]


class Measured(NamedTuple):
    """Maps float32 [scenes, h, w] and their standard errors."""

    mean: Maps
    standard_error: Maps


@pytest.fixture(scope="module")
def exact() -> Pipeline:
    return load_pipeline("tiny")


@pytest.fixture(scope="module")
def measure(exact: Pipeline) -> Callable[[Pipeline, int, int], Measured]:
    """Typicality of so many scenes under a model and a seed; all are given the same latents."""

    @cache
    def batch(start: int) -> tuple[torch.Tensor, list[str]]:
        """Latents of scenes and the element that each is mined for."""
        pixels, elements = [], []
        for i in range(start, start + BATCH):
            rng = np.random.default_rng(i)
            scene = draw_scene(rng, None, SIZE)
            pixels.append(np.asarray(scene.image))
            elements.append(scene.boxes[int(rng.integers(len(scene.boxes)))].variant)
        ids = [str(i) for i in range(start, start + BATCH)]
        return sampled_latents(exact, np.stack(pixels), ids, 42), elements

    def run(pipeline: Pipeline, scenes: int, seed: int) -> Measured:
        draws = draw(seed, (4, SIZE // 8, SIZE // 8), DRAWS, (0.1, 0.7))
        null_embeds = pipeline.embed_prompts([""])
        means, m2s = [], []
        for start in range(0, scenes, BATCH):
            latents, elements = batch(start)
            embeds = pipeline.embed_prompts([f"A street with a {e}." for e in elements])
            image_of_pair = torch.arange(BATCH)
            estimate = typicality(pipeline, latents, embeds, image_of_pair, null_embeds, draws)
            means.append(estimate.mean)
            m2s.append(estimate.m2)
        standard_error = (torch.cat(m2s) / (DRAWS * (DRAWS - 1))).sqrt()
        return Measured(torch.cat(means).numpy(), standard_error.numpy())

    return run


def all_scores(maps: Maps) -> Maps:
    return np.stack([patch_scores(m, (SIZE, SIZE), PATCH) for m in maps])


def rank_correlation(one: Maps, other: Maps) -> float:
    """Spearman's, over all windows of all scenes."""

    def ranks(values: Maps) -> npt.NDArray[np.int64]:
        return values.ravel().argsort(kind="stable").argsort(kind="stable")

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def top_patches(scores: Maps, count: int) -> list[tuple[int, int, int]]:
    """Scene, y and x of the highest patches of all scenes."""
    patches = [
        (-float(of_scene[y, x]), scene, y, x)
        for scene, of_scene in enumerate(scores)
        for y, x in pick_patches(of_scene, PATCH, PER_IMAGE)
    ]
    return [where for _, *where in sorted(patches)[:count]]  # type: ignore[misc]


def overlap(one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]) -> float:
    """Share of the patches of one that lie over half on a patch of the other."""

    def shared(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        both = max(0, PATCH - abs(a[1] - b[1])) * max(0, PATCH - abs(a[2] - b[2]))
        return both / (2 * PATCH**2 - both)

    return float(np.mean([any(a[0] == b[0] and shared(a, b) > 0.5 for b in other) for a in one]))


class Change(NamedTuple):
    """What a precision does to maps and to what is chosen by them."""

    of_standard_error: float
    """Root mean square of the maps' change, over that of the standard error of the mean."""
    rank_correlation: float
    """Spearman's, over the scores of all windows."""
    overlap: float
    """Share of the top patches that are chosen in both."""


def change(exact: Measured, rounded: Measured, top: int) -> Change:
    error = rounded.mean - exact.mean
    scores, rounded_scores = all_scores(exact.mean), all_scores(rounded.mean)
    return Change(
        float(np.sqrt((error**2).mean() / (exact.standard_error**2).mean())),
        rank_correlation(scores, rounded_scores),
        overlap(top_patches(scores, top), top_patches(rounded_scores, top)),
    )


@pytest.mark.slow
def test_bfloat16_chooses_nearly_the_patches_of_float32(
    exact: Pipeline, measure: Callable[[Pipeline, int, int], Measured]
) -> None:
    """Measured: 0.12 standard errors, rank correlation 0.995, 93 % of the top 500 of 1040, and
    the same of twice as many scenes.

    The 0.12 stay the same at 4, 16 and 64 draws: the rounding averages out as the noise does.
    Another seed's two draws: 1.4, 0.35 and 13 %. Slow: it takes 1700 forwards.
    """
    rounded = load_pipeline("tiny", dtype=torch.bfloat16)
    found = change(measure(exact, SCENES, 42), measure(rounded, SCENES, 42), TOP)
    assert found.of_standard_error < 0.2
    assert found.rank_correlation > 0.99
    assert found.overlap > 0.9


@pytest.mark.slow
def test_float16_chooses_the_patches_of_float32(
    exact: Pipeline, measure: Callable[[Pipeline, int, int], Measured]
) -> None:
    """Measured: 0.016 standard errors, rank correlation 0.9999, all of the top 40 of 80.

    Slow: the CPU computes float16 many times slower than float32.
    """
    rounded = load_pipeline("tiny", dtype=torch.float16)
    found = change(measure(exact, BATCH, 42), measure(rounded, BATCH, 42), 40)
    assert found.of_standard_error < 0.05
    assert found.rank_correlation > 0.999
    assert found.overlap > 0.9


def test_maps_stored_as_float16_would_lose_less_than_the_noise_of_the_draws(
    exact: Pipeline, measure: Callable[[Pipeline, int, int], Measured]
) -> None:
    """Also where it is subnormal: a model whose typicality is a thousandth of this one's."""
    mean, standard_error = measure(exact, BATCH, 42)
    for scale in (1.0, 1e-3):
        stored = (scale * mean).astype(np.float16).astype(np.float64)
        assert (np.abs(stored - scale * mean) < 0.05 * scale * standard_error.mean()).all()
