"""Which prompt an image of a step's batch is trained with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from drawn_images import Drawn

from diffmining_core.finetuning.batches import Batches, latent_shape
from diffmining_core.finetuning.latents import LatentCache
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.sampling import Sampling
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build

COUNT = 20_000
NULL, LABEL, DETAILED = "View.", "View of Peru.", "View of Cuzco, Peru."


def prompts_of_a_step(
    folder: Path, null_share: float, detailed_share: float, detail: str | None = "Cuzco"
) -> list[str]:
    """The prompts of a batch of COUNT images of one label."""
    pipeline = build(0)
    options = FinetuneOptions(
        steps=1, batch_size=COUNT, size=32, crop="none", null_share=null_share
    )
    prompts = PromptTemplate(
        "View of {label}.", "View.", "View of {detail}, {label}.", detailed_share
    )
    images = Drawn([(32, 32)], ["Peru"], [detail])
    cache = LatentCache(folder, latent_shape(pipeline, options))
    batches = Batches(pipeline, images, prompts, options, Sampling(images, options), cache)
    said: list[str] = []
    nothing = torch.zeros(1)

    def embed(prompt: str) -> torch.Tensor:
        said.append(prompt)
        return nothing

    batches.embed = embed  # type: ignore[assignment] # to see what is asked
    batches.at(0, slice(0, COUNT))
    return said


def test_the_released_shares_are_of_all_images(tmp_path: Path) -> None:
    """5 % null, 10 % with the region, 85 % the country alone."""
    counts = Counter(prompts_of_a_step(tmp_path, 0.05, 0.10))
    for prompt, share in ((NULL, 0.05), (DETAILED, 0.10), (LABEL, 0.85)):
        deviation = (COUNT * share * (1 - share)) ** 0.5
        assert abs(counts[prompt] - COUNT * share) < 3 * deviation, prompt


def test_shares_that_add_up_to_one_leave_no_label_alone(tmp_path: Path) -> None:
    """Were one a share of what the other leaves, a quarter of the images would get it."""
    counts = Counter(prompts_of_a_step(tmp_path, 0.5, 0.5))
    assert set(counts) == {NULL, DETAILED}
    assert counts[NULL] == pytest.approx(COUNT / 2, rel=0.03)


def test_one_number_of_the_steps_generator_decides(tmp_path: Path) -> None:
    """Which images get the null prompt does not depend on the share of detailed ones."""
    plain = prompts_of_a_step(tmp_path, 0.05, 0.0)
    detailed = prompts_of_a_step(tmp_path, 0.05, 0.10)
    assert set(plain) == {NULL, LABEL}
    nulls = [prompt == NULL for prompt in detailed]
    assert [prompt == NULL for prompt in plain] == nulls
    assert sum(nulls) == plain.count(NULL)


def test_an_image_without_a_detail_gets_its_label_alone(tmp_path: Path) -> None:
    counts = Counter(prompts_of_a_step(tmp_path, 0.05, 0.95, detail=None))
    assert set(counts) == {NULL, LABEL}
    assert counts[NULL] == pytest.approx(0.05 * COUNT, rel=0.15)
