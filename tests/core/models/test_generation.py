from __future__ import annotations

import numpy as np
import pytest
import torch

from diffmining_core.models.generation import generated_images, latent_shape, sampled
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build

PROMPTS = PromptTemplate("A street in {label}.", "A street.")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


def images(pipeline: Pipeline, count: int, label: str = "Peru", guidance: float = 3.0,
           seed: int = 7) -> np.ndarray:  # fmt: skip
    made = generated_images(pipeline, PROMPTS, label, count, 64, guidance, 2, seed)
    return np.stack(list(made))


def test_the_first_images_are_the_same_however_many_are_asked_for(pipeline: Pipeline) -> None:
    torch.manual_seed(1)
    few, many = images(pipeline, 3), images(pipeline, 10)
    assert few.shape == (3, 64, 64, 3)
    assert few.dtype == np.uint8
    np.testing.assert_array_equal(few, many[:3])
    assert len({one.tobytes() for one in many}) == 10


@pytest.mark.parametrize("change", [{"label": "Chad"}, {"guidance": 7.5}, {"seed": 8}])
def test_label_guidance_and_seed_make_other_images(
    pipeline: Pipeline, change: dict[str, object]
) -> None:
    assert (images(pipeline, 1) != images(pipeline, 1, **change)).any()  # type: ignore[arg-type]


def test_guidance_of_one_is_the_labels_prediction_alone(pipeline: Pipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *latent_shape(pipeline, 64), generator=generator)
    embeds = pipeline.embed_prompts(["A street.", "A street in Peru."])
    before = pipeline.unet_forwards
    alone = sampled(pipeline, pipeline.predict, noise, embeds, 1.0, 3)
    assert pipeline.unet_forwards - before == 3 * 2
    near = sampled(pipeline, pipeline.predict, noise, embeds, 1.0 + 1e-9, 3)
    assert pipeline.unet_forwards - before == 3 * 2 + 3 * 2 * 2
    torch.testing.assert_close(alone, near, atol=1e-4, rtol=1e-4)
