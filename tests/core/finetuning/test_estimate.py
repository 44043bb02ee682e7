from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffmining_core.finetuning.estimate import (
    Estimate,
    encoder_flops,
    estimate,
    unet_cost,
    unet_inputs,
)
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.models.files import find_model

SD15: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 4
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "text_encoder": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77,
    },
}  # fmt: skip

SD15_OPTIONS = FinetuneOptions(steps=1000, batch_size=8, size=512)


@pytest.fixture(scope="module")
def tiny() -> Mapping[str, Mapping[str, Any]]:
    files = find_model("tiny")
    return {name: files.config(name) for name in ("unet", "vae", "text_encoder")}


def test_stable_diffusion_costs_what_is_known_of_it() -> None:
    cost = unet_cost(SD15, SD15_OPTIONS, torch.bfloat16)
    assert cost.flops == pytest.approx(803.3e9, rel=1e-3)
    assert cost.parameters == 859_520_964
    assert encoder_flops(SD15, 512) == pytest.approx(1117e9, rel=1e-3)
    # Attention's weights of all pairs alone would be 1.3 GB at 64 × 64 positions.
    assert 0.5e9 < cost.kept_bytes < 1.2e9
    assert 0.1e9 < cost.checkpointed_bytes < cost.kept_bytes / 3


def test_what_is_kept_is_what_a_real_pass_keeps(tiny: Mapping[str, Mapping[str, Any]]) -> None:
    options = FinetuneOptions(steps=1, batch_size=1, size=128)
    unet = UNet2DConditionModel.from_config(dict(tiny["unet"])).train()
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = unet_inputs(tiny, options, 2, torch.device("cpu"), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(inputs[0].requires_grad_(), inputs[1], encoder_hidden_states=inputs[2])
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 2 * unet_cost(tiny, options, torch.float32).kept_bytes == pytest.approx(real, rel=0.02)


def sd15(running: FinetuneRunning | None = None, **changes: Any) -> Estimate:
    running = running or FinetuneRunning(precision="bfloat16")
    return estimate(SD15, 4000, replace(SD15_OPTIONS, **changes), running, "cpu")


def test_memory_is_what_each_option_says() -> None:
    full = sd15()
    parameters = 859_520_964
    assert full.memory["gradients"] == 4 * parameters
    assert full.memory["AdamW"] == 8 * parameters
    assert full.epochs == 2
    assert not full.measured
    running = FinetuneRunning(precision="bfloat16", micro_batch=2)
    assert 4 * sd15(running).memory["activations"] == full.memory["activations"]
    shared = sd15(FinetuneRunning(precision="bfloat16", processes=2))
    assert 2 * shared.memory["activations"] == full.memory["activations"]
    assert shared.seconds == pytest.approx(full.seconds / 2)
    checkpointed = sd15(FinetuneRunning(precision="bfloat16", gradient_checkpointing=True))
    assert checkpointed.memory["activations"] < full.memory["activations"] / 3
    assert checkpointed.seconds > 1.2 * full.seconds
    assert sd15(ema_decay=0.9).memory["moving average"] == 4 * parameters
    assert sd15(lora_rank=8).memory["AdamW"] < 0.01 * full.memory["AdamW"]
    # The authors' batch of 8 images at 512 px: three times the UNet's pass, and the VAE's.
    assert full.step_flops == pytest.approx(8 * 3 * 803.3e9, rel=1e-3)
    assert sd15(crop="none").seconds < full.seconds


def test_a_small_model_is_timed(tiny: Mapping[str, Mapping[str, Any]]) -> None:
    state = torch.random.get_rng_state()
    options = FinetuneOptions(steps=10, batch_size=2, size=64)
    found = estimate(tiny, 20, options, FinetuneRunning(), "cpu")
    assert found.measured
    assert 0.01 < found.seconds < 600
    assert torch.equal(torch.random.get_rng_state(), state)
