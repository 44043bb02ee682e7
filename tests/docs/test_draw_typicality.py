"""The picture of the explanation works the equation out as it is written: what mining measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from written_pages import REPOSITORY

from diffmining_core.images.pixels import load_pixels
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.draws import draw, sampled_latents
from diffmining_core.typicality.estimator import typicality

DRAWS = 6
LABEL = "Almara"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY)
        from docs import draw_typicality
    return draw_typicality


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("tiny")


@pytest.fixture(scope="module")
def pixels(scenes: Path) -> Any:
    return load_pixels(str(scenes / LABEL / f"{LABEL}_00001.png"), 64)


def test_the_errors_differ_by_what_mining_measures(
    script: Any, pipeline: Pipeline, pixels: Any
) -> None:
    errors = script.errors(pipeline, pixels, LABEL, PromptTemplate(), DRAWS)
    assert (errors.null > 0).all() and (errors.conditioned > 0).all()

    latents = sampled_latents(pipeline, pixels[None], [LABEL], script.SEED)
    shape = (latents.shape[1], latents.shape[2], latents.shape[3])
    embeds = pipeline.embed_prompts(["", PromptTemplate().of(LABEL)])
    draws = draw(script.SEED, shape, DRAWS, script.T_RANGE)
    measured = typicality(
        pipeline, latents, embeds[1:], torch.zeros(1, dtype=torch.int64), embeds[:1], draws
    )
    np.testing.assert_allclose(errors.typicality, measured.mean[0].numpy(), atol=1e-5)


def test_a_row_has_its_panels_and_the_scales_their_ends(
    script: Any, pipeline: Pipeline, pixels: Any
) -> None:
    errors = script.errors(pipeline, pixels, LABEL, PromptTemplate(), 2)
    row = script.Panels(LABEL, pixels, errors)
    one, two = script.picture([row]), script.picture([row, row])
    assert one.width == two.width
    assert two.height - one.height == script.PANEL + script.CAPTION
