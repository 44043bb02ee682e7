from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.translation.injection import attention_layers, feature_layer, injected


@pytest.fixture(scope="module")
def sd15_shaped() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's layers, each much narrower."""
    return UNet2DConditionModel(
        block_out_channels=(8, 8, 16, 16),
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=4,
    )


def names(unet: UNet2DConditionModel) -> set[str]:
    chosen = [feature_layer(unet), *(one for pair in attention_layers(unet) for one in pair)]
    return {name for name, module in unet.named_modules() if any(module is one for one in chosen)}


def test_the_layers_of_stable_diffusion_are_the_papers(sd15_shaped: UNet2DConditionModel) -> None:
    attentions = [(1, 1), (1, 2), *((block, place) for block in (2, 3) for place in (0, 1, 2))]
    assert names(sd15_shaped) == {"up_blocks.1.resnets.1.conv2"} | {
        f"up_blocks.{block}.attentions.{place}.transformer_blocks.0.attn1.{part}"
        for block, place in attentions
        for part in ("to_q", "to_k")
    }


def test_the_tiny_pipeline_has_those_of_them_that_it_has(tiny: Pipeline) -> None:
    attentions = [(1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert names(tiny.unet) == {"up_blocks.1.resnets.1.conv2"} | {
        f"up_blocks.{block}.attentions.{place}.transformer_blocks.0.attn1.{part}"
        for block, place in attentions
        for part in ("to_q", "to_k")
    }


@pytest.mark.parametrize("attention", [True, False])
def test_rows_have_the_features_of_their_source(tiny: Pipeline, attention: bool) -> None:
    seen: dict[str, torch.Tensor] = {}
    layers = {
        name: module for name, module in tiny.unet.named_modules() if name in names(tiny.unet)
    }
    x = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = tiny.embed_prompts([f"An image of {label}." for label in "abcde"])
    source_of_row = torch.tensor([0, 1, 0, 1, 1])
    plain = tiny.predict_noise(x, torch.full((5,), 301), embeds)
    with injected(tiny.unet, source_of_row, attention):
        handles = [
            layer.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
            for name, layer in layers.items()
        ]
        came = tiny.predict_noise(x, torch.full((5,), 301), embeds)
    for handle in handles:
        handle.remove()
    assert seen.keys() == layers.keys()
    for name, output in seen.items():
        taken = torch.equal(output, output[source_of_row])
        assert taken == (attention or name.endswith("conv2")), name
    torch.testing.assert_close(came[:2], plain[:2])
    assert not torch.allclose(came[2:], plain[2:], atol=1e-3)
    after = tiny.predict_noise(x, torch.full((5,), 301), embeds)
    assert torch.equal(after, plain), "outside nothing is carried over"
