from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.weights import save_lora, save_merged, trainable
from diffmining_core.models.files import LORA_FILE, ModelSource, find_model
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.tiny.train_base import build

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(0).save(folder)
    return folder


def with_adapter(base: Path, alpha: int = 3) -> Pipeline:
    """The pipeline with a LoRA of rank 3 beside its attention weights, both factors random."""
    pipeline = load_pipeline(str(base))
    torch.manual_seed(7)
    pipeline.unet.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=ATTENTION))
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return pipeline


def factors(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    """Name of layer -> what the LoRA of rank and alpha 3 adds to its weight: B A."""
    layers: dict[str, torch.Tensor] = get_peft_model_state_dict(pipeline.unet)
    return {
        name.replace(".lora_A.weight", ""): layers[name.replace("lora_A", "lora_B")] @ layers[name]
        for name in layers
        if "lora_A" in name
    }


def check_merged(found: Any, base: Path, added: dict[str, torch.Tensor]) -> None:
    """The UNet `found` is the base's with `added` added, in the same module tree."""
    before = load_pipeline(str(base)).unet.state_dict()
    after = found.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        expected = weight + added.get(name.removesuffix(".weight"), 0)
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-6, msg=name)
    assert sum(not torch.equal(after[name], before[name]) for name in before) == len(added) > 20


@pytest.fixture
def diffusers_lora(base: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A LoRA's file as diffusers' trainers and our finetuning write it, and what it adds."""
    pipeline = with_adapter(base)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "lora", unet_lora_layers=get_peft_model_state_dict(pipeline.unet)
    )
    return tmp_path / "lora" / LORA_FILE, factors(pipeline)


def kohya(weights: dict[str, torch.Tensor], alpha: float | None) -> dict[str, torch.Tensor]:
    """The same LoRA as kohya's scripts write it."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        inner = name.removeprefix("unet.").removesuffix(".weight")
        layer, _, factor = inner.rpartition(".")
        stem = "lora_unet_" + layer.replace(".", "_")
        named[f"{stem}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[factor] }.weight"] = tensor
        if alpha is not None:
            named[f"{stem}.alpha"] = torch.tensor(alpha)
    return named


def test_a_lora_by_diffusers_is_merged_into_the_weights(
    base: Path, diffusers_lora: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    path, added = diffusers_lora
    for name in (path, path.parent):  # the file, or its folder
        source = ModelSource(str(base), lora=str(name))
        loaded = load_pipeline(source)
        check_merged(loaded.unet, base, added)
        assert loaded.digest != load_pipeline(str(base)).digest
        assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())


@pytest.mark.parametrize(("alpha", "scale"), [(3.0, 1.0), (1.5, 0.5), (None, 1.0)])
def test_a_lora_by_kohyas_scripts_is_merged_with_its_alpha(
    base: Path,
    diffusers_lora: tuple[Path, dict[str, torch.Tensor]],
    tmp_path: Path,
    alpha: float | None,
    scale: float,
) -> None:
    path, added = diffusers_lora
    save_file(kohya(load_file(path), alpha), tmp_path / "kohya.safetensors")
    loaded = load_pipeline(ModelSource(str(base), lora=str(tmp_path / "kohya.safetensors")))
    check_merged(loaded.unet, base, {name: scale * tensor for name, tensor in added.items()})


def test_the_precision_is_lowered_after_the_merge(
    base: Path, diffusers_lora: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    source = ModelSource(str(base), lora=str(diffusers_lora[0]))
    low, full = load_pipeline(source, "cpu", torch.bfloat16), load_pipeline(source)
    for name, weight in full.unet.state_dict().items():
        assert torch.equal(low.unet.state_dict()[name], weight.to(torch.bfloat16))


def test_a_merged_model_counts_its_forwards_and_is_saved_like_any_other(
    base: Path, diffusers_lora: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, added = diffusers_lora
    loaded = load_pipeline(ModelSource(str(base), lora=str(path)))
    with torch.no_grad():
        loaded.predict(
            torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), loaded.embed_prompts(["", ""])
        )
    assert loaded.unet_forwards == 2
    loaded.save(tmp_path / "saved")
    check_merged(load_pipeline(str(tmp_path / "saved")).unet, base, added)


def refused(base: Path, path: Path, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load_pipeline(ModelSource(str(base), lora=str(path)))
    assert "\n" not in str(caught.value)
    assert f"LoRA {path}" in str(caught.value)


def test_a_lora_that_changes_the_text_encoder_too_is_refused(
    base: Path, diffusers_lora: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    weights = load_file(diffusers_lora[0])
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    weights[f"{layer}.lora_A.weight"] = torch.zeros(3, 64)
    weights[f"{layer}.lora_B.weight"] = torch.zeros(64, 3)
    save_file(weights, tmp_path / "both.safetensors")
    refused(base, tmp_path / "both.safetensors", "UNet alone, but has weights for text_encoder")
    te = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    both = kohya(load_file(diffusers_lora[0]), 3.0)
    both[f"{te}.lora_down.weight"] = torch.zeros(3, 64)
    both[f"{te}.lora_up.weight"] = torch.zeros(64, 3)
    both[f"{te}.alpha"] = torch.tensor(3.0)
    save_file(both, tmp_path / "kohya.safetensors")
    refused(base, tmp_path / "kohya.safetensors", "UNet alone, but has weights for text_encoder")


def test_a_lora_of_another_model_is_refused(
    base: Path, diffusers_lora: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    weights = load_file(diffusers_lora[0])
    wide = {
        name: tensor.repeat(1, 2) if "lora_A" in name else tensor.repeat(2, 1)
        for name, tensor in weights.items()
    }
    save_file(wide, tmp_path / "wide.safetensors")
    refused(
        base, tmp_path / "wide.safetensors", "does not fit this model's UNet .its layers have other"
    )
    elsewhere = {name.replace("mid_block", "end_block"): t for name, t in weights.items()}
    save_file(elsewhere, tmp_path / "elsewhere.safetensors")
    refused(base, tmp_path / "elsewhere.safetensors", "of its [0-9]+ layers are in the UNet")


def test_what_is_no_lora_is_refused(base: Path, tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(base, tmp_path / "model.safetensors", "has none of a LoRA's weights")
    save_file({"unet.conv.dora_scale": torch.zeros(1)}, tmp_path / "dora.safetensors")
    refused(base, tmp_path / "dora.safetensors", "cannot be read .it is a DoRA")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    refused(base, tmp_path / "cut.safetensors", "cannot be read")


def test_a_folder_with_several_files_does_not_say_which(base: Path, tmp_path: Path) -> None:
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "old.bin").write_bytes(b"pickle")
    for path in (tmp_path, tmp_path / "old.bin"):
        with pytest.raises(InputError, match="should be one safetensors file, or a folder"):
            find_model(ModelSource(str(base), lora=str(path)))


def test_a_lora_of_our_own_finetuning_is_what_that_merged(base: Path, tmp_path: Path) -> None:
    """The published model and the base with its LoRA differ by rounding: 1e-6."""
    pipeline = load_pipeline(str(base))
    trained = trainable(pipeline.unet, FinetuneOptions(steps=1, batch_size=1, lora_rank=4))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tmp_path.joinpath("lora").mkdir()
    save_lora(pipeline.unet, tmp_path / "lora")
    save_merged(pipeline, tmp_path / "merged")
    found = load_pipeline(ModelSource(str(base), lora=str(tmp_path / "lora"))).unet.state_dict()
    expected = load_pipeline(str(tmp_path / "merged")).unet.state_dict()
    own = load_pipeline(str(base)).unet.state_dict()
    assert sum(not torch.equal(expected[name], own[name]) for name in own) == len(trained) // 2
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
