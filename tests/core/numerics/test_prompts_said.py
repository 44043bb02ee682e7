"""Training and typicality say the same words, and the text encoder hears them as diffusers does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from diffmining_core.finetuning.images import Described, TrainingImage
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.training import Kept, Work, train
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.models.unet import cross_attentions
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

PROMPTS = PromptTemplate("A place of {label}s.", "A place.", words={"lift_ski": "ski lift"})
LABELS = {"lift_ski": "A place of ski lifts.", "bus_stop": "A place of bus stops."}
PIXELS = np.full((64, 64, 3), 100, np.uint8)


class OfLabels:
    """An image of each label."""

    def __len__(self) -> int:
        return len(LABELS)

    def describe(self, index: int) -> Described:
        return Described(str(index), (list(LABELS)[index],))

    def load(self, index: int) -> TrainingImage:
        return TrainingImage(PIXELS, (list(LABELS)[index],), None, str(index))


@pytest.fixture
def pipeline() -> Pipeline:
    return build(0)


@pytest.fixture
def heard(pipeline: Pipeline) -> list[torch.Tensor]:
    """What the UNet is told, prompt by prompt, during the test."""
    embeds: list[torch.Tensor] = []

    def look(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        embeds.extend(arguments[0].clone())

    cross_attentions(pipeline.unet)[0].to_k.register_forward_pre_hook(look)
    return embeds


@pytest.fixture
def by_diffusers(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    """The embedding of each prompt as diffusers' own pipeline makes it."""
    parts = {
        name: getattr(pipeline, name)
        for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    }
    theirs = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    said = [*LABELS.values(), "A place."]
    with torch.no_grad():
        embeds, _ = theirs.encode_prompt(said, "cpu", 1, do_classifier_free_guidance=False)
    return dict(zip(said, embeds, strict=True))


def words_of(heard: list[torch.Tensor], by_diffusers: dict[str, torch.Tensor]) -> list[str]:
    """Which prompt each of the embeddings is; it must be one."""
    words = []
    for embeds in heard:
        # Prompts are embedded one at a time or together, which shows in the last bits.
        (found,) = (
            said for said, theirs in by_diffusers.items() if (embeds - theirs).abs().max() < 1e-5
        )
        words.append(found)
    return words


def test_typicality_says_each_label_and_the_null_prompt(
    pipeline: Pipeline,
    heard: list[torch.Tensor],
    by_diffusers: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    uri = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(uri)
    image_id = hashlib.sha256(uri.read_bytes()).hexdigest()[:32]
    rows = [ShardImage(image_id, str(uri), label, 64, 64) for label in LABELS]
    options = TypicalityOptions(PROMPTS, 64, draws=2, t_range=(0.1, 0.7), seed=42)
    shard_typicality(pipeline, rows, options, 8)
    assert words_of(heard, by_diffusers) == ["A place.", *LABELS.values()]


@pytest.mark.parametrize(("null_share", "said"), [(0.0, set(LABELS.values())), (1.0, {"A place."})])
def test_training_says_the_same(
    pipeline: Pipeline,
    heard: list[torch.Tensor],
    by_diffusers: dict[str, torch.Tensor],
    tmp_path: Path,
    null_share: float,
    said: set[str],
) -> None:
    options = FinetuneOptions(steps=1, batch_size=4, null_share=null_share, size=64)
    root = open_root(f"memory://{uuid4().hex}")
    kept = Kept(*(RootCheckpoints(root, name) for name in ("checkpoints", "snapshots", "previews")))
    running = FinetuneRunning()
    train(Work(pipeline, OfLabels(), PROMPTS, list(LABELS), options, running, kept, tmp_path))
    assert len(heard) == 4
    assert set(words_of(heard, by_diffusers)) == said
