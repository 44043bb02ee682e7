from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from diffmining_core.models import ALGO
from diffmining_core.models.finetune import (
    LORA_FILE,
    FinetuneOptions,
    epoch_indices,
    finetune,
    merge_lora,
    random_crop,
)
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root

OPTIONS = FinetuneOptions(steps=2, batch_size=2, learning_rate=1e-3, size=64)
SQUARE = [(64, 64), (64, 64)]
MIXED = [(64, 64), (64, 96), (80, 64)]


class Drawn:
    """Images of the given (h, w) in memory, labelled a, b, c …; counts what is loaded."""

    def __init__(self, shapes: list[tuple[int, int]], labels: str = "abc") -> None:
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
        self.labels = labels
        self.loads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[npt.NDArray[np.uint8], str]:
        self.loads[index] += 1
        return self.images[index], self.labels[index]


def checkpoints(every: int = 1000) -> RootCheckpoints:
    return RootCheckpoints(open_root(f"memory://{uuid4().hex}"), "checkpoints", every)


def train(
    pipeline: Pipeline,
    images: Drawn,
    options: FinetuneOptions = OPTIONS,
    kept: RootCheckpoints | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> npt.NDArray[np.float32]:
    return finetune(pipeline, images, PromptTemplate(), options, kept or checkpoints(), on_step)


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def output(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    latents, embeds = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 77, 64)))
    with torch.no_grad():
        prediction: torch.Tensor = unet(
            latents, torch.tensor([100, 600]), encoder_hidden_states=embeds
        ).sample
    return prediction


def test_the_loss_falls_and_only_the_unet_changes() -> None:
    pipeline = build(0)
    before = {name: weights(getattr(pipeline, name)) for name in ("unet", "vae", "text_encoder")}
    losses = train(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=16, batch_size=4))
    assert losses.dtype == np.float32
    assert losses[-4:].mean() < 0.9 * losses[:4].mean()
    assert equal(weights(pipeline.vae), before["vae"])
    assert equal(weights(pipeline.text_encoder), before["text_encoder"])
    after = weights(pipeline.unet)
    assert not any(torch.equal(after[name], before["unet"][name]) for name in after)
    assert not pipeline.unet.training
    assert not any(p.requires_grad for p in pipeline.unet.parameters())


class Killed(Exception):  # noqa: N818 - it stands for the end of a process
    pass


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_run_killed_and_resumed_ends_as_one_left_alone(lora_rank: int) -> None:
    options = replace(OPTIONS, steps=5, schedule="cosine", lora_rank=lora_rank)
    undisturbed = build(0)
    expected = train(undisturbed, Drawn(MIXED), options)

    def kill(step: int, _loss: float) -> None:
        if step == 3:  # after the checkpoint of two steps, before that of four
            raise Killed

    kept = checkpoints(every=2)
    with pytest.raises(Killed):
        train(build(0), Drawn(MIXED), options, kept, kill)
    resumed, steps = build(0), []
    losses = train(resumed, Drawn(MIXED), options, kept, lambda step, _: steps.append(step))
    assert steps == [2, 3, 4]
    np.testing.assert_array_equal(losses, expected)
    assert equal(weights(resumed.unet), weights(undisturbed.unet))


def test_the_latent_cache_changes_nothing_but_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, steps=3)
    cached, images = build(0), Drawn(MIXED)
    losses = train(cached, images, options)
    assert images.loads[0] == 1  # needs no crop
    assert images.loads[1] == images.loads[2] == 2  # six places among three images
    monkeypatch.setattr("diffmining_core.models.finetune.LATENT_CACHE_BYTES", 0)
    uncached, images = build(0), Drawn(MIXED)
    np.testing.assert_array_equal(train(uncached, images, options), losses)
    assert images.loads[0] == 2
    assert equal(weights(uncached.unet), weights(cached.unet))


def test_a_size_that_is_no_multiple_of_eight_trains_on_the_rounded_one() -> None:
    losses = train(build(0), Drawn([(64, 80), (72, 64)]), replace(OPTIONS, steps=1, size=70))
    assert np.isfinite(losses).all()


def seen_null_share(null_share: float, steps: int, batch_size: int) -> float:
    """The share of null prompts among those that the UNet meets."""
    pipeline = build(0)
    null = pipeline.embed_prompts([""])[0]
    met: list[bool] = []

    def look(_module: object, _arguments: object, named: dict[str, torch.Tensor]) -> None:
        met.extend(torch.equal(embeds, null) for embeds in named["encoder_hidden_states"])

    pipeline.unet.register_forward_pre_hook(look, with_kwargs=True)
    options = replace(OPTIONS, steps=steps, batch_size=batch_size, null_share=null_share)
    train(pipeline, Drawn(SQUARE), options)
    assert len(met) == steps * batch_size
    return float(np.mean(met))


@pytest.mark.parametrize("null_share", [0.0, 1.0])
def test_prompts_are_all_null_or_none(null_share: float) -> None:
    assert seen_null_share(null_share, 1, 4) == null_share


def test_a_share_of_the_prompts_is_null() -> None:
    # 96 prompts: the share lies within 4 standard errors.
    assert abs(seen_null_share(0.3, 3, 32) - 0.3) < 4 * (0.3 * 0.7 / 96) ** 0.5


def test_a_velocity_model_learns_the_velocity() -> None:
    pipeline = build(0)
    pipeline.scheduler = DDPMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )
    target = torch.zeros(0)
    truth = pipeline.training_target

    def remember(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal target
        target = truth(*arguments)
        return target

    pipeline.training_target = remember  # type: ignore[method-assign,assignment] # to see what is asked of it
    predictions: list[torch.Tensor] = []
    pipeline.unet.register_forward_hook(
        lambda _m, _a, output: predictions.append(output.sample.detach())
    )
    (loss,) = train(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=1))
    assert loss == pytest.approx(float(((predictions[0] - target) ** 2).mean()), rel=1e-5)


def test_a_lora_trains_alone_and_merges_into_what_it_did(tmp_path: Path) -> None:
    base = build(0)
    base.save(tmp_path / "base")
    before = weights(base.unet)

    pipeline = load_pipeline(str(tmp_path / "base"))
    train(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=3, learning_rate=1e-2, lora_rank=2))
    adapted = weights(pipeline.unet)
    lora = {name for name in adapted if "lora" in name}
    assert all(".attn" in name and ".to_" in name for name in lora)
    for name in adapted.keys() - lora:
        assert torch.equal(adapted[name], before[name.replace(".base_layer", "")])
    expected = output(pipeline.unet)
    assert (expected - output(base.unet)).abs().max() > 1e-3

    merge_lora(pipeline, tmp_path / "lora")
    assert weights(pipeline.unet).keys() == before.keys()
    torch.testing.assert_close(output(pipeline.unet), expected, atol=1e-5, rtol=1e-4)

    assert [path.name for path in (tmp_path / "lora").iterdir()] == [LORA_FILE]
    assert sum(t.numel() for t in load_file(tmp_path / "lora" / LORA_FILE).values()) == sum(
        adapted[name].numel() for name in lora
    )
    fresh = StableDiffusionPipeline.from_pretrained(tmp_path / "base", safety_checker=None)
    fresh.load_lora_weights(tmp_path / "lora", weight_name=LORA_FILE)
    torch.testing.assert_close(output(fresh.unet), expected, atol=1e-5, rtol=1e-4)


def test_a_finetuned_model_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    pipeline = build(0)
    train(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=1, lora_rank=2))
    merge_lora(pipeline, tmp_path)
    pipeline.save(tmp_path)
    torch.testing.assert_close(
        output(load_pipeline(str(tmp_path)).unet), output(pipeline.unet), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("batch_size", "total"), [(3, 7), (7, 7), (10, 4), (1, 3)])
def test_each_epoch_shows_every_image_once(batch_size: int, total: int) -> None:
    steps = -(-4 * total // batch_size)
    seen = [i for step in range(steps) for i in epoch_indices(42, step, batch_size, total)]
    assert len(seen) == steps * batch_size
    epochs = [seen[start : start + total] for start in range(0, 4 * total, total)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epoch_indices(42, 1, batch_size, total) == seen[batch_size : 2 * batch_size]


@pytest.mark.parametrize("hw", [(64, 100), (100, 64), (64, 64), (70, 90)])
def test_crops_reach_every_edge_and_stay_inside(hw: tuple[int, int]) -> None:
    pixels = np.zeros((*hw, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.indices(hw)
    for place in [(0.0, 0.0), (0.5, 0.5), (0.999, 0.999), (0.0, 0.999)]:
        crop = random_crop(pixels, 64, place)
        assert crop.shape == (64, 64, 3)
        top_left = [p * (side - 64) for p, side in zip(place, hw, strict=True)]
        np.testing.assert_allclose(crop[0, 0, :2], top_left, atol=1)
    assert random_crop(pixels, 64, (0.999, 0.999))[-1, -1, :2].tolist() == [hw[0] - 1, hw[1] - 1]


def test_learning_rates() -> None:
    constant = replace(OPTIONS, steps=100)
    assert {constant.learning_rate_at(step) for step in range(100)} == {1e-3}
    cosine = replace(constant, schedule="cosine")
    rates = np.array([cosine.learning_rate_at(step) for step in range(100)]) / 1e-3
    half_cosine = (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose(rates[:5], half_cosine[:5] * np.arange(1, 6) / 5)
    np.testing.assert_allclose(rates[5:], half_cosine[5:])
    assert rates[-1] < 1e-3


def test_golden_output_of_this_version() -> None:
    pipeline = build(0)
    torch.manual_seed(0)
    pipeline.vae = AutoencoderKL(  # the numbers outlive improvements of the built-in one
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
    )
    losses = train(pipeline, Drawn(MIXED), replace(OPTIONS, steps=3, learning_rate=1e-4))
    found = [*losses.tolist(), float(output(pipeline.unet).std())]
    message = "if you changed the maths on purpose, raise models.ALGO and update these numbers"
    assert ALGO == "finetune-1", message
    assert found == pytest.approx([1.0800395, 1.0279367, 1.0761239, 0.2693289], rel=1e-4), message
