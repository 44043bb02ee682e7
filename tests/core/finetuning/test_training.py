from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from drawn_images import (
    MIXED,
    RUNNING,
    SQUARE,
    Drawn,
    distance,
    equal,
    kept,
    output,
    trained,
    weights,
)
from safetensors.torch import load_file

from diffmining_core.errors import InputError
from diffmining_core.finetuning import ALGO, training
from diffmining_core.finetuning.listener import Listener
from diffmining_core.finetuning.losses import History
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.training import SNAPSHOT
from diffmining_core.finetuning.weights import merged, put_weights, save_lora, save_merged
from diffmining_core.models.files import LORA_FILE
from diffmining_core.models.pipelines import load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build

OPTIONS = FinetuneOptions(steps=2, batch_size=2, learning_rate=1e-3, size=64)


def test_the_loss_falls_and_only_the_unet_changes() -> None:
    pipeline = build(0)
    before = {name: weights(getattr(pipeline, name)) for name in ("unet", "vae", "text_encoder")}
    losses = trained(
        pipeline, Drawn(SQUARE), replace(OPTIONS, steps=16, batch_size=4)
    ).history.losses
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


class Steps(Listener):
    """Notes the steps done; stops the run in the midst of one."""

    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at
        self.steps: list[int] = []

    def stepped(self, step: int, history: History, images_per_second: float) -> None:
        self.steps.append(step)
        if step == self.kill_at:
            raise Killed


RESUMED = [({}, 2), ({}, 4), ({"lora_rank": 2}, 4), ({"ema_decay": 0.9, "held_out": 1}, 4)]


@pytest.mark.parametrize(("changes", "first"), RESUMED)
def test_a_run_killed_and_resumed_ends_as_one_left_alone(
    changes: dict[str, Any], first: int
) -> None:
    images = Drawn([*MIXED, *[(64, 64)] * 7], ["a", "b"] * 5)
    options = replace(OPTIONS, steps=5, schedule="cosine", **changes)
    running = replace(RUNNING, checkpoint_every=2, evaluate_every=4)
    undisturbed = build(0)
    expected = trained(undisturbed, images, options, running).history

    keeping = kept(checkpoints=2)
    with pytest.raises(Killed):
        trained(build(0), images, options, running, keeping, Steps(kill_at=4))
    assert keeping.checkpoints.steps() == [2, 4]
    if first == 2:  # the newest is lost, and the one before it serves as well
        (lost,) = [name for name in keeping.checkpoints._complete() if "000004" in name]
        keeping.checkpoints._drop(lost)
    steps, resumed = Steps(), build(0)
    found = trained(resumed, images, options, running, keeping, steps).history
    assert steps.steps == list(range(first, 5))
    np.testing.assert_array_equal(found.losses, expected.losses)
    assert found.as_json(options) == expected.as_json(options)
    assert equal(weights(resumed.unet), weights(undisturbed.unet))


def test_the_latent_cache_changes_nothing_but_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, steps=3)
    cached, images = build(0), Drawn(MIXED)
    losses = trained(cached, images, options).history.losses
    assert images.loads[0] == 1  # needs no crop
    assert images.loads[1] == images.loads[2] == 2  # six places among three images
    monkeypatch.setattr(
        "diffmining_core.finetuning.latents.LatentCache.put", lambda *arguments: None
    )
    uncached, images = build(0), Drawn(MIXED)
    np.testing.assert_array_equal(trained(uncached, images, options).history.losses, losses)
    assert images.loads[0] == 2
    assert equal(weights(uncached.unet), weights(cached.unet))


def test_a_size_that_is_no_multiple_of_eight_trains_on_the_rounded_one() -> None:
    options = replace(OPTIONS, steps=1, size=70)
    assert np.isfinite(trained(build(0), Drawn([(64, 80), (72, 64)]), options).history.losses).all()


def seen_null_share(null_share: float, steps: int, batch_size: int) -> float:
    """The share of null prompts among those that the UNet meets."""
    pipeline = build(0)
    null = pipeline.embed_prompts([""])[0]
    met: list[bool] = []

    def look(_module: object, _arguments: object, named: dict[str, torch.Tensor]) -> None:
        met.extend(torch.equal(embeds, null) for embeds in named["encoder_hidden_states"])

    pipeline.unet.register_forward_pre_hook(look, with_kwargs=True)
    options = replace(OPTIONS, steps=steps, batch_size=batch_size, null_share=null_share)
    trained(pipeline, Drawn(SQUARE), options)
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
    (loss,) = trained(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=1)).history.losses
    assert loss == pytest.approx(float(((predictions[0] - target) ** 2).mean()), rel=1e-5)


def test_a_lora_trains_alone_and_merges_into_what_it_did(tmp_path: Path) -> None:
    base = build(0)
    base.save(tmp_path / "base")
    before = weights(base.unet)

    pipeline = load_pipeline(str(tmp_path / "base"))
    trained(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=3, learning_rate=1e-2, lora_rank=2))
    adapted = weights(pipeline.unet)
    lora = {name for name in adapted if "lora" in name}
    assert all(".attn" in name and ".to_" in name for name in lora)
    for name in adapted.keys() - lora:
        assert torch.equal(adapted[name], before[name.replace(".base_layer", "")])
    expected = output(pipeline.unet)
    assert (expected - output(base.unet)).abs().max() > 1e-3

    alone = merged(pipeline.unet)
    assert weights(alone).keys() == before.keys()
    torch.testing.assert_close(output(alone), expected, atol=1e-5, rtol=1e-4)

    save_lora(pipeline.unet, tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [LORA_FILE]
    assert sum(t.numel() for t in load_file(tmp_path / "lora" / LORA_FILE).values()) == sum(
        adapted[name].numel() for name in lora
    )
    fresh = StableDiffusionPipeline.from_pretrained(tmp_path / "base", safety_checker=None)
    fresh.load_lora_weights(tmp_path / "lora", weight_name=LORA_FILE)
    torch.testing.assert_close(output(fresh.unet), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_finetuned_model_is_saved_and_loaded_like_any_other(
    tmp_path: Path, lora_rank: int
) -> None:
    pipeline = build(0)
    trained(pipeline, Drawn(SQUARE), replace(OPTIONS, steps=1, lora_rank=lora_rank))
    save_merged(pipeline, tmp_path)
    torch.testing.assert_close(
        output(load_pipeline(str(tmp_path)).unet), output(pipeline.unet), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_snapshot_is_the_model_of_a_shorter_run(tmp_path: Path, lora_rank: int) -> None:
    options = replace(OPTIONS, steps=3, lora_rank=lora_rank, snapshots=(2,))
    pipeline, keeping = build(0), kept()
    trained(pipeline, Drawn(MIXED), options, keeping=keeping)
    keeping.snapshots.fetch(2, tmp_path)
    put_weights(pipeline.unet, load_file(tmp_path / SNAPSHOT))
    shorter = build(0)
    trained(shorter, Drawn(MIXED), replace(options, steps=2))
    assert equal(weights(pipeline.unet), weights(shorter.unet))


def test_the_average_of_the_weights_is_the_model() -> None:
    options = replace(OPTIONS, steps=3, ema_decay=0.2)
    averaged, keeping = build(0), kept()
    trained(averaged, Drawn(SQUARE), options, keeping=keeping)
    # The same by hand: the raw weights after each step, of runs that end there.
    expected = weights(build(0).unet)
    for step in range(3):
        raw = build(0)
        trained(raw, Drawn(SQUARE), replace(OPTIONS, steps=step + 1))
        decay = min(0.2, (1 + step) / (10 + step))
        for name, value in weights(raw.unet).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    assert distance(weights(averaged.unet), expected) < 1e-6


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_how_it_runs_changes_only_rounding(micro_batch: int, gradient_checkpointing: bool) -> None:
    options = replace(OPTIONS, batch_size=4)
    whole, parts = build(0), build(0)
    losses = trained(whole, Drawn(MIXED), options).history.losses
    running = replace(
        RUNNING, micro_batch=micro_batch, gradient_checkpointing=gradient_checkpointing
    )
    found = trained(parts, Drawn(MIXED), options, running).history.losses
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    # AdamW's first steps go by the gradient's sign: where it is next to nothing, rounding tells.
    assert relative_change(whole.unet, parts.unet) < 0.02


def test_so_does_the_layout_of_the_weights_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, steps=4)
    expected = build(0)
    losses = trained(expected, Drawn(SQUARE), options).history.losses

    def as_on_a_gpu(unet: Any) -> None:
        unet.to(memory_format=torch.channels_last)

    monkeypatch.setattr(training, "channels_last", as_on_a_gpu)
    whole, resumed = build(0), build(0)
    found = trained(whole, Drawn(SQUARE), options).history.losses
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert relative_change(expected.unet, whole.unet) < 0.02

    keeping, running = kept(checkpoints=2), replace(RUNNING, checkpoint_every=2)
    with pytest.raises(Killed):
        trained(build(0), Drawn(SQUARE), options, running, keeping, Steps(kill_at=3))
    trained(resumed, Drawn(SQUARE), options, running, keeping)
    assert equal(weights(resumed.unet), weights(whole.unet))
    kernel = resumed.unet.mid_block.resnets[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()


def relative_change(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """How far two trained UNets are apart, over how far they have come."""
    base = weights(build(0).unet)
    apart = sum(float(((a - b) ** 2).sum()) for a, b in zip(
        weights(one).values(), weights(other).values(), strict=True))  # fmt: skip
    come = sum(float(((a - b) ** 2).sum()) for a, b in zip(
        weights(one).values(), base.values(), strict=True))  # fmt: skip
    return float((apart / come) ** 0.5)


def test_bfloat16_changes_less_than_another_seed() -> None:
    options = replace(OPTIONS, steps=6, held_out=1)
    images = Drawn([(64, 64)] * 12, ["a"] * 12)
    running = replace(RUNNING, evaluate_every=6)

    def held_out(precision: str, seed: int) -> float:
        result = trained(
            build(0),
            images,
            replace(options, seed=seed),
            replace(running, precision=precision),  # type: ignore[arg-type] # one of its words
        )
        assert result.precision == precision
        return float(result.history.evaluations[-1].seen.mean())

    exact, low, other = held_out("float32", 42), held_out("bfloat16", 42), held_out("float32", 43)
    assert 0 < abs(low - exact) < 0.2 * abs(other - exact)


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="float16 needs a CUDA device, but the device is cpu"):
        trained(build(0), Drawn(SQUARE), OPTIONS, replace(RUNNING, precision="float16"))


def seen_prompts(images: Drawn, prompts: PromptTemplate, batch_size: int) -> set[str]:
    """The prompts that a step's batch is trained on."""
    pipeline, asked = build(0), set()
    embed = pipeline.embed_prompts

    def remember(prompts: list[str]) -> torch.Tensor:
        asked.update(prompts)
        return embed(prompts)

    pipeline.embed_prompts = remember  # type: ignore[method-assign,assignment] # to see what is asked
    options = replace(OPTIONS, steps=1, batch_size=batch_size, null_share=0)
    trained(pipeline, images, options, prompts=prompts)
    return asked


def test_several_labels_of_an_image_stand_in_one_prompt() -> None:
    images = Drawn(SQUARE, [("Mass", "Pleural_Effusion"), ("No finding",)])
    prompts = PromptTemplate("X-ray with {label}.", words={"No finding": "nothing to see"})
    assert seen_prompts(images, prompts, 2) == {
        "X-ray with Mass, Pleural Effusion.", "X-ray with nothing to see."
    }  # fmt: skip


def test_a_share_of_the_images_with_a_detail_is_said_with_it() -> None:
    images = Drawn(SQUARE, ["Peru", "Chile"], ["Cuzco", None])
    detailed = PromptTemplate(
        "View of {label}.", detailed="View of {detail}, {label}.", detailed_share=1.0
    )
    assert seen_prompts(images, detailed, 2) == {"View of Cuzco, Peru.", "View of Chile."}
    half = replace(detailed, detailed_share=0.5)
    assert seen_prompts(images, half, 32) == {
        "View of Cuzco, Peru.", "View of Peru.", "View of Chile."
    }  # fmt: skip


def test_images_that_should_be_square_and_are_not_are_named() -> None:
    options = replace(OPTIONS, crop="none")
    assert trained(build(0), Drawn(SQUARE), options).history.losses.all()
    with pytest.raises(InputError, match="64 × 64 px, but id 1 is 96 × 64 px after resizing"):
        trained(build(0), Drawn([(64, 64), (64, 96)]), options)


def test_an_unusable_image_gives_way_to_the_next() -> None:
    images = Drawn([(64, 64)] * 3, unusable=[1])
    trained(build(0), images, replace(OPTIONS, batch_size=3))
    assert images.loads == {0: 1, 1: 2, 2: 1}  # the others' latents are kept
    with pytest.raises(InputError, match="none of the 2 images can be used"):
        trained(build(0), Drawn(SQUARE, unusable=[0, 1]), OPTIONS)


def test_a_loss_that_is_no_number_stops_the_run_in_words() -> None:
    pipeline, keeping = build(0), kept()
    options = replace(OPTIONS, steps=9)
    truth, calls = pipeline.training_target, 0

    def overflow(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return truth(*arguments) * (float("nan") if calls == 6 else 1)

    pipeline.training_target = overflow  # type: ignore[method-assign,assignment] # stands for overflow
    running = replace(RUNNING, checkpoint_every=2)
    with pytest.raises(
        InputError, match=r"step 6 of 9: the loss is nan; train with a lower .* than"
    ):
        trained(pipeline, Drawn(SQUARE), options, running, keeping)
    assert keeping.checkpoints.steps() == [4]
    assert all(torch.isfinite(p).all() for p in pipeline.unet.parameters())


def test_divergence_stops_the_run_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmining_core.finetuning.training.DIVERGED", 0.1)
    with pytest.raises(InputError, match=r"step 20 of 60: the mean loss of 20 steps is .* lower"):
        trained(build(0), Drawn(SQUARE), replace(OPTIONS, steps=60, batch_size=1))


def test_a_far_too_high_learning_rate_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"has failed at step \d+ of 60: the .* is (nan|inf)"):
        trained(build(0), Drawn(SQUARE), replace(OPTIONS, steps=60, learning_rate=0.3))


def test_a_rising_loss_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmining_core.finetuning.training.RISE_WINDOW", 1)
    monkeypatch.setattr(
        "diffmining_core.finetuning.training.rising_since", lambda losses: len(losses)
    )
    trained(build(0), Drawn(SQUARE), replace(OPTIONS, steps=3))
    assert [record.message for record in caplog.records] == [
        "the training loss rises since step 1; if it goes on, stop and train with a lower learning "
        "rate than 0.001"
    ]


def test_golden_output_of_this_version() -> None:
    pipeline = build(0)
    torch.manual_seed(0)
    pipeline.vae = AutoencoderKL(  # the numbers outlive improvements of the built-in one
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
    )
    options = replace(OPTIONS, steps=3, learning_rate=1e-4)
    losses = trained(pipeline, Drawn(MIXED), options).history.losses
    found = [*losses.tolist(), float(output(pipeline.unet).std())]
    message = "if you changed the maths on purpose, raise finetuning.ALGO and update these numbers"
    assert ALGO == "finetune-3", message
    assert found == pytest.approx([1.0800395, 1.0279367, 1.0761239, 0.2693289], rel=1e-4), message
