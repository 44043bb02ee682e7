from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_models import sd2

from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.weights import merged, trainable
from diffmining_core.models.files import model_digest
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.models.unet import (
    embedded_timesteps,
    forward,
    keys_and_values,
    prepare,
)

SIZES = [(8, 8), (11, 9)]
"""Latents that halve evenly, and some that do not."""
PROMPTS = ["", "An image of Oslo.", "An image of Rome."]


@pytest.fixture(scope="module")
def untouched() -> Pipeline:
    """A pipeline whose UNet is as diffusers made it."""
    return build(0)


@pytest.fixture
def pipeline(untouched: Pipeline) -> Pipeline:
    """The same, to prepare."""
    copied = deepcopy(untouched)
    prepare(copied.unet)
    return copied


def latents(rows: int, size: tuple[int, int], channels: int = 4) -> torch.Tensor:
    return torch.randn(rows, channels, *size, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def ours(
    unet: UNet2DConditionModel,
    x: torch.Tensor,
    timestep: int,
    embeds: torch.Tensor,
    last_up_block: int | None = None,
) -> torch.Tensor:
    """The forward with all that is shared computed before it; embeds of every row."""
    time = embedded_timesteps(unet, torch.tensor([timestep]))
    return forward(unet, x, time, keys_and_values(unet, embeds), last_up_block)


@torch.inference_mode()
def theirs(
    unet: UNet2DConditionModel, x: torch.Tensor, timestep: int, embeds: torch.Tensor
) -> torch.Tensor:
    """The forward as diffusers has it."""
    found: torch.Tensor = unet(
        x, torch.full((len(x),), timestep), encoder_hidden_states=embeds
    ).sample
    return found


@pytest.mark.parametrize(
    ("size", "rows", "timestep"),
    [
        ((8, 8), 3, 0),
        ((8, 8), 1, 999),
        ((11, 9), 3, 161),  # does not halve evenly
        ((64, 94), 1, 500),  # of a street view: its 94 columns can be halved but once
    ],
)
def test_the_forward_is_that_of_diffusers(
    untouched: Pipeline, pipeline: Pipeline, size: tuple[int, int], rows: int, timestep: int
) -> None:
    embeds, x = untouched.embed_prompts(PROMPTS[-rows:]), latents(rows, size)
    expected = theirs(untouched.unet, x, timestep, embeds)
    assert expected.shape == x.shape
    torch.testing.assert_close(
        ours(pipeline.unet, x, timestep, embeds), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", SIZES)
def test_so_it_is_for_a_model_of_the_second_generation(size: tuple[int, int]) -> None:
    pipeline = sd2()
    embeds, x = pipeline.embed_prompts(PROMPTS), latents(3, size)
    expected = theirs(pipeline.unet, x, 500, embeds)
    prepare(pipeline.unet)
    torch.testing.assert_close(ours(pipeline.unet, x, 500, embeds), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_an_up_block_is_where_a_hook_sees_it(pipeline: Pipeline, size: tuple[int, int]) -> None:
    embeds, x = pipeline.embed_prompts(PROMPTS), latents(3, size)
    for place, block in enumerate(pipeline.unet.up_blocks):
        seen: list[torch.Tensor] = []
        hook = block.register_forward_hook(lambda _m, _a, output, seen=seen: seen.append(output))
        theirs(pipeline.unet, x, 161, embeds)
        hook.remove()
        found = ours(pipeline.unet, x, 161, embeds, last_up_block=place)
        torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


def test_blocks_behind_the_wanted_one_do_not_run(pipeline: Pipeline) -> None:
    def too_far(*_arguments: object) -> None:
        raise AssertionError("a block behind it ran")

    pipeline.unet.up_blocks[2].register_forward_pre_hook(too_far)
    embeds = pipeline.embed_prompts(PROMPTS[:1])
    ours(pipeline.unet, latents(1, (8, 8)), 161, embeds, last_up_block=1)
    with pytest.raises(AssertionError, match="a block behind it ran"):
        ours(pipeline.unet, latents(1, (8, 8)), 161, embeds, last_up_block=2)


def test_a_prepared_unet_still_takes_prompts(untouched: Pipeline, pipeline: Pipeline) -> None:
    embeds, x = untouched.embed_prompts(PROMPTS), latents(3, (11, 9))
    prepare(pipeline.unet)  # once more does no harm
    assert torch.equal(
        theirs(pipeline.unet, x, 161, embeds), theirs(untouched.unet, x, 161, embeds)
    )


def test_a_prepared_unet_still_trains(untouched: Pipeline, pipeline: Pipeline) -> None:
    embeds, x = untouched.embed_prompts(PROMPTS), latents(3, (8, 8))
    gradients = []
    for unet in (deepcopy(untouched.unet), pipeline.unet):
        unet.requires_grad_(True)
        predicted = unet(x, torch.tensor([5, 50, 500]), encoder_hidden_states=embeds).sample
        predicted.square().mean().backward()
        gradients.append(unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_unet_with_a_lora_and_one_it_is_merged_into_are_prepared_too(
    untouched: Pipeline,
) -> None:
    unet = deepcopy(untouched.unet)
    embeds, x = untouched.embed_prompts(PROMPTS), latents(3, (8, 8))
    plain = theirs(unet, x, 161, embeds)
    generator = torch.Generator().manual_seed(0)
    options = FinetuneOptions(steps=1, batch_size=1, learning_rate=1e-3, size=64, lora_rank=2)
    for name, weight in trainable(unet, options).items():
        if "lora_B" in name:  # which begins as zero and changes nothing
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    expected = theirs(unet, x, 161, embeds)
    assert (expected - plain).abs().max() > 1e-3
    for changed in (merged(unet), unet):
        prepare(changed)
        found = ours(changed, x, 161, embeds)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_channels_come_last_but_what_is_saved_is_the_same(
    untouched: Pipeline, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = pipeline.unet.conv_in.weight
    assert weight.is_contiguous()
    # The UNet says that it is on a GPU; its weights stay here.
    # The weights say that they are on a GPU, and stay here.
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)
    prepare(pipeline.unet)
    monkeypatch.undo()
    assert weight is pipeline.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()

    embeds, x = untouched.embed_prompts(PROMPTS), latents(3, (11, 9))
    expected = theirs(untouched.unet, x, 161, embeds)
    torch.testing.assert_close(ours(pipeline.unet, x, 161, embeds), expected, rtol=1e-4, atol=1e-5)
    untouched.save(tmp_path / "before")
    pipeline.save(tmp_path / "after")
    assert model_digest(tmp_path / "after") == model_digest(tmp_path / "before")
