from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from drawn_images import RUNNING, SQUARE, Drawn, equal, kept, trained, weights
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from diffmining_core.finetuning import previews
from diffmining_core.finetuning.listener import Listener
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.previews import generated_latents, grid
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.seeds import seeded
from diffmining_core.models.tiny.train_base import build

OPTIONS = FinetuneOptions(steps=2, batch_size=2, learning_rate=1e-3, size=64)


class Pictures(Listener):
    def __init__(self) -> None:
        self.pngs: dict[int, bytes] = {}

    def previewed(self, step: int, png: bytes) -> None:
        self.pngs[step] = png


def test_previews_do_not_touch_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "DDIM_STEPS", 3)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    plain, watched, pictures, keeping = build(0), build(0), Pictures(), kept()
    torch.random.set_rng_state(state)
    losses = trained(plain, Drawn(SQUARE, "ab"), OPTIONS).history.losses
    running = replace(RUNNING, preview_every=1, previews_per_label=1)
    found = trained(watched, Drawn(SQUARE, "ab"), OPTIONS, running, keeping, pictures)
    np.testing.assert_array_equal(found.history.losses, losses)
    assert equal(weights(watched.unet), weights(plain.unet))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert keeping.previews.steps() == [1, 2]
    image = PngImageFile(io.BytesIO(pictures.pngs[1]))
    assert json.loads(image.text["rows"]) == ["An image of a.", "An image of b."]
    assert pictures.pngs[1] != pictures.pngs[2]


def test_generated_latents_are_those_of_diffusers_own_pipeline() -> None:
    pipeline = build(0)
    template = PromptTemplate("A street in {label}.", "A street.")
    found = generated_latents(pipeline, pipeline.predict, template, "Peru", 64, 2, seed=7)
    theirs = StableDiffusionPipeline(
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.unet,
        DDIMScheduler.from_config(pipeline.scheduler.config),
        None,
        None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn((4, 8, 8), generator=seeded(7, "preview", i)) for i in (0, 1)])
    expected = theirs(
        ["A street in Peru."] * 2,
        negative_prompt=["A street."] * 2,
        height=64,
        width=64,
        num_inference_steps=previews.DDIM_STEPS,
        guidance_scale=previews.GUIDANCE,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_long_captions_are_cut_and_odd_ones_drawn() -> None:
    row = [Image.new("RGB", (64, 64), "teal")]
    image = Image.open(io.BytesIO(grid([row, row], ["x" * 300, "Perú\nund Øster"])))
    assert image.width == 64 + 8
    assert np.asarray(image)[:, -2:].min() == 255, "nothing is drawn over the edge"
