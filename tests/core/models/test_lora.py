from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.weights import save_lora, save_merged, trainable
from diffmining_core.models.files import LORA_FILE, ModelSource, find_model
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.tiny.train_base import build

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(0).save(folder)
    return folder


def with_adapter(base: Path, **settings: Any) -> Pipeline:
    """The pipeline with a LoRA beside its weights, both factors random."""
    pipeline = load_pipeline(str(base))
    torch.manual_seed(7)
    pipeline.unet.add_adapter(LoraConfig(**{"r": 3, "target_modules": ATTENTION, **settings}))
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1.3)
    return pipeline


def saved_by_diffusers(unet: Any, folder: Path, header: bool = True) -> Path:
    """The file of a UNet's LoRA as diffusers' trainers write it, today with a header."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        **(_collate_lora_metadata({"unet": unet}) if header else {}),
    )
    return folder / LORA_FILE


def merged_by_diffusers(base: Path, path: Path) -> Weights:
    """The UNet's weights after diffusers' own `load_lora_weights` and `fuse_lora`."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    others = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker")
    pipeline = StableDiffusionPipeline(
        unet=unet,
        feature_extractor=None,
        requires_safety_checker=False,
        **dict.fromkeys(others),
    )
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    weights: Weights = unet.state_dict()
    return weights


def check_as_diffusers(base: Path, path: Path) -> Weights:
    """What the LoRA adds to each weight that it changes; the result is diffusers' own."""
    before = load_pipeline(str(base)).unet.state_dict()
    after = load_pipeline(ModelSource(str(base), lora=str(path))).unet.state_dict()
    torch.testing.assert_close(after, merged_by_diffusers(base, path), atol=1e-5, rtol=0)
    return {
        name.removesuffix(".weight"): after[name] - before[name]
        for name in before
        if not torch.equal(after[name], before[name])
    }


def factors(pipeline: Pipeline) -> Weights:
    """Name of layer -> B A, what its LoRA adds at the scale 1."""
    layers: Weights = get_peft_model_state_dict(pipeline.unet)
    return {
        name.replace(".lora_A.weight", ""): layers[name.replace("lora_A", "lora_B")] @ layers[name]
        for name in layers
        if "lora_A" in name
    }


def check_merged(found: Any, base: Path, added: Weights) -> None:
    """The UNet `found` is the base's with `added` added, in the same module tree."""
    before = load_pipeline(str(base)).unet.state_dict()
    after = found.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        expected = weight + added.get(name.removesuffix(".weight"), 0)
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-6, msg=name)
    assert sum(not torch.equal(after[name], before[name]) for name in before) == len(added) > 20


@pytest.fixture
def diffusers_lora(base: Path, tmp_path: Path) -> tuple[Path, Weights]:
    """A LoRA's file as diffusers' older trainers and our finetuning write it, and what it adds."""
    pipeline = with_adapter(base)
    path = saved_by_diffusers(pipeline.unet, tmp_path / "lora", header=False)
    return path, factors(pipeline)


def kohya(weights: Weights, alpha: float | Callable[[str], float] | None) -> Weights:
    """The same LoRA as kohya's scripts write it; `alpha` may depend on the layer."""
    named: Weights = {}
    for name, tensor in weights.items():
        inner = name.removeprefix("unet.").removesuffix(".weight")
        layer, _, factor = inner.rpartition(".")
        stem = "lora_unet_" + layer.replace(".", "_")
        named[f"{stem}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[factor] }.weight"] = tensor
        if alpha is not None:
            named[f"{stem}.alpha"] = torch.tensor(alpha(layer) if callable(alpha) else alpha)
    return named


def test_a_lora_by_diffusers_is_merged_into_the_weights(
    base: Path, diffusers_lora: tuple[Path, Weights]
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
    diffusers_lora: tuple[Path, Weights],
    tmp_path: Path,
    alpha: float | None,
    scale: float,
) -> None:
    path, added = diffusers_lora
    save_file(kohya(load_file(path), alpha), tmp_path / "kohya.safetensors")
    loaded = load_pipeline(ModelSource(str(base), lora=str(tmp_path / "kohya.safetensors")))
    check_merged(loaded.unet, base, {name: scale * tensor for name, tensor in added.items()})


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"r": 4, "lora_alpha": 32}, lambda _: 8.0),
        ({"r": 8, "lora_alpha": 2}, lambda _: 0.25),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, lambda _: 3.0),
        (
            {"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 12, "mid_block.*to_q": 1}},
            lambda layer: (
                3.0 if "to_k" in layer else 0.25 if "mid" in layer and "to_q" in layer else 0.5
            ),
        ),
        (
            {"r": 4, "lora_alpha": 2, "rank_pattern": {"to_v": 2}},
            lambda layer: 1.0 if "to_v" in layer else 0.5,
        ),
    ],
    ids=["alpha 32 of rank 4", "alpha 2 of rank 8", "rslora", "alpha by layer", "rank by layer"],
)
def test_the_scale_is_that_of_the_files_header(
    base: Path, tmp_path: Path, settings: dict[str, Any], scale: Callable[[str], float]
) -> None:
    pipeline = with_adapter(base, **settings)
    added = check_as_diffusers(base, saved_by_diffusers(pipeline.unet, tmp_path))
    expected = {layer: scale(layer) * delta for layer, delta in factors(pipeline).items()}
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=1e-5)


def test_a_dora_by_peft_is_merged_as_by_diffusers(base: Path, tmp_path: Path) -> None:
    pipeline = with_adapter(base, lora_alpha=6, use_dora=True)
    for header in (True, False):
        path = saved_by_diffusers(pipeline.unet, tmp_path / str(header), header)
        assert check_as_diffusers(base, path).keys() == factors(pipeline).keys()


def test_kohyas_convolutions_may_have_an_alpha_of_their_own(base: Path, tmp_path: Path) -> None:
    pipeline = with_adapter(base, lora_alpha=3, target_modules=[*ATTENTION, "conv1", "ff.net.2"])
    weights = get_peft_model_state_dict(pipeline.unet)
    save_file(
        kohya(weights, lambda layer: 1.5 if layer.endswith("conv1") else 6.0),
        tmp_path / "kohya.safetensors",
    )
    added = check_as_diffusers(base, tmp_path / "kohya.safetensors")
    for layer, delta in added.items():
        module = pipeline.unet.get_submodule(layer)
        scale = 0.5 if layer.endswith("conv1") else 2.0
        torch.testing.assert_close(
            delta, scale * module.get_delta_weight("default"), atol=1e-6, rtol=1e-5
        )


def test_alphas_that_diffusers_would_mix_up_are_refused(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
) -> None:
    weights = load_file(diffusers_lora[0])
    path = tmp_path / "kohya.safetensors"
    save_file(kohya(weights, lambda layer: 1.0 if "to_q" in layer else 6.0), path)
    refused(base, path, r"has several alphas, and diffusers would merge .*to_q at the scale 2 inst")
    some = kohya(weights, 6.0)
    del some[next(name for name in some if name.endswith("to_k.alpha"))]
    save_file(some, path)
    refused(base, path, r"would merge .*to_k at the scale 2 instead of 1")


@pytest.mark.parametrize("processors", [True, False])
def test_older_keys_of_diffusers_are_read(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path, processors: bool
) -> None:
    path, added = diffusers_lora
    old: Weights = {}
    for name, tensor in load_file(path).items():
        name = name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
        if processors:
            name = name.replace("to_out.0", "to_out").replace(".lora.", "_lora.")
            name = name.replace(".to_", ".processor.to_")
        old[name] = tensor
    up = ".processor.to_out_lora.up." if processors else ".to_out.0.lora.up."
    assert any(up in name for name in old)
    save_file(old, tmp_path / "old.safetensors")
    torch.testing.assert_close(
        check_as_diffusers(base, tmp_path / "old.safetensors"), added, atol=1e-6, rtol=1e-5
    )


def test_the_precision_is_lowered_after_the_merge(
    base: Path, diffusers_lora: tuple[Path, Weights]
) -> None:
    source = ModelSource(str(base), lora=str(diffusers_lora[0]))
    low, full = load_pipeline(source, "cpu", torch.bfloat16), load_pipeline(source)
    for name, weight in full.unet.state_dict().items():
        assert torch.equal(low.unet.state_dict()[name], weight.to(torch.bfloat16))


def test_a_merged_model_counts_its_forwards_and_is_saved_like_any_other(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
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
    """Refused in one sentence, before any weights of the model are read."""
    with pytest.raises(InputError, match=sentence) as caught:
        find_model(ModelSource(str(base), lora=str(path)))
    assert "\n" not in str(caught.value)
    assert f"LoRA {path}" in str(caught.value)


def test_a_lora_that_changes_the_text_encoder_too_is_refused(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
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
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
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
    refused(base, tmp_path / "elsewhere.safetensors", r"16 of its weights have no place, end_block")


def test_a_lora_without_one_of_its_factors_is_refused(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
) -> None:
    weights = load_file(diffusers_lora[0])
    del weights[next(name for name in weights if "up_blocks" in name and "to_q.lora_A" in name)]
    save_file(weights, tmp_path / "half.safetensors")
    refused(base, tmp_path / "half.safetensors", r"lacks 1 weights, up_blocks.*to_q.lora_A the")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("conv.weight", "has none of a LoRA's weights"),
        ("down_blocks.0.to_q.lora_A.weight", "has none of a LoRA's weights"),
        ("lora_unet_mid_block_attn1_to_q.dora_scale", r"\(it is a DoRA by kohya's scripts\)"),
        ("lora_unet_mid_block_attn1_to_q.hada_w1_a", r"\(it is a LoHa\)"),
        ("lora_unet_mid_block_attn1_to_q.lokr_w1", r"\(it is a LoKr\)"),
        ("lora_unet_mid_block_conv1.lora_mid.weight", r"\(it has Tucker factors\)"),
        ("lora_unet_mid_block_norm.diff", "not been correctly renamed: lora_unet_mid_block_norm"),
        ("lora_unet_mid_block_conv1.lora_down.weight", "cannot be read .*conv1.lora_up.weight"),
    ],
)
def test_what_is_no_lora_is_refused(base: Path, tmp_path: Path, key: str, sentence: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    refused(base, tmp_path / "model.safetensors", sentence)


def test_a_file_that_is_cut_off_or_a_pickle_is_refused(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"1234")
    refused(base, path, "cannot be read")
    torch.save({"unet.a.lora_A.weight": torch.zeros(1)}, path)  # which diffusers reads by itself
    refused(base, path, "cannot be read")


def test_alphas_among_diffusers_keys_are_not_dropped(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
) -> None:
    weights = load_file(diffusers_lora[0])
    layer = next(iter(weights)).partition(".lora")[0]
    save_file({**weights, f"{layer}.alpha": torch.tensor(9.0)}, tmp_path / "a.safetensors")
    refused(base, tmp_path / "a.safetensors", r"1 weights that diffusers does not load, .*\.alpha")


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"unet.r": 3, "unet.init_lora_weights": "pissa"}, "was trained with init_lora_weights 'p"),
        ({"unet.r": 3, "unet.megatron_config": {}}, "was trained with megatron_config {}"),
        ({"unet.r": 3, "unet.bias": "all"}, "was trained with bias 'all'"),
        ({"unet.r": 3, "unet.nothing_known": None}, "LoraConfig.* could not be instantiated"),
        ({"unet.r": 5, "unet.target_modules": ATTENTION}, "its layers have other shapes"),
        ({"unet.r": "3", "unet.target_modules": ATTENTION}, "does not fit this model's UNet"),
        ({"lora_alpha": 9}, "should have settings for the UNet as lora_adapter_metadata"),
        ({}, "should have settings for the UNet"),
        ([1], r"should have settings for the UNet .* but has \[1\]"),
    ],
)
def test_a_header_that_says_more_than_a_scale_is_refused(
    base: Path,
    diffusers_lora: tuple[Path, Weights],
    tmp_path: Path,
    header: Any,
    sentence: str,
) -> None:
    path = tmp_path / "header.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(header)}
    save_file(load_file(diffusers_lora[0]), path, metadata=metadata)
    refused(base, path, sentence)


def test_a_header_that_is_no_json_or_speaks_beside_kohyas_alphas_is_refused(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
) -> None:
    weights, path = load_file(diffusers_lora[0]), tmp_path / "header.safetensors"
    save_file(weights, path, metadata={"lora_adapter_metadata": "{"})
    refused(base, path, "cannot be read")
    twice = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 6})}
    save_file(kohya(weights, 3.0), path, metadata=twice)
    refused(base, path, "gives its scale twice")


def test_weights_that_are_not_finite_are_never_merged(
    base: Path, diffusers_lora: tuple[Path, Weights], tmp_path: Path
) -> None:
    weights = load_file(diffusers_lora[0])
    weights[next(iter(weights))].fill_(torch.nan)
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"nan.safetensors makes weights .* not finite"):
        load_pipeline(ModelSource(str(base), lora=str(tmp_path / "nan.safetensors")))


def test_a_lora_in_a_folder_is_named_by_its_file(base: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    refused(base, tmp_path, r"LoRA .* \(odd.safetensors\) does not fit")


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
