"""Pipelines in the shapes in which they are published, small and with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    make_old_layout,
    save_half,
    save_numbered,
    save_whole_clip,
    sd2,
    small_lora,
    write_old_tokenizer,
)
from transformers import CLIPModel

from diffmining_core.errors import InputError
from diffmining_core.models.files import (
    COMPONENTS,
    Geometry,
    ModelSource,
    find_model,
    model_digest,
    model_geometry,
)
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.tiny.train_base import build


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of today's layout with full weights (leave it as it is)."""
    folder = tmp_path_factory.mktemp("base")
    build(0).save(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    """The repository of a whole CLIP model that fits `base`, and the model in it."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, save_whole_clip(folder)


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def prediction(pipeline: Pipeline) -> torch.Tensor:
    """The noise that a pipeline sees in fixed latents of 9 x 12 under a fixed prompt."""
    latents = torch.randn(2, 4, 9, 12, generator=torch.Generator().manual_seed(5))
    embeds = pipeline.embed_prompts(["", "An image of France."])
    with torch.no_grad():
        return pipeline.predict_noise(latents, torch.tensor([161, 700]), embeds)


def test_stable_diffusion_2_predicts_the_velocity_and_knows_its_size(tmp_path: Path) -> None:
    made = sd2()
    made.save(tmp_path)
    assert model_geometry(find_model(str(tmp_path))) == Geometry(size=192, cell=8)
    loaded = load_pipeline(str(tmp_path))
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.unet.config.attention_head_dim == [4, 8, 8, 8]
    torch.testing.assert_close(prediction(loaded), prediction(made), atol=1e-5, rtol=0)
    # ε̂ = sqrt(ā) v̂ + sqrt(1 - ā) x_t, in float64.
    latents = torch.randn(2, 4, 9, 12, generator=torch.Generator().manual_seed(5))
    timesteps = torch.tensor([161, 700])
    embeds = loaded.embed_prompts(["", "An image of France."])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)[timesteps].view(2, 1, 1, 1)
    with torch.no_grad():
        velocity = loaded.predict(latents, timesteps, embeds).double()
    expected = alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * latents.double()
    torch.testing.assert_close(prediction(loaded).double(), expected, atol=1e-5, rtol=0)


def test_the_layout_of_2022_gives_the_same_model(base: Path, tmp_path: Path) -> None:
    old = copy(base, tmp_path / "old")
    make_old_layout(old)
    found, expected = load_pipeline(str(old)), load_pipeline(str(base))
    assert torch.equal(prediction(found), prediction(expected))
    pixel_values = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for one, other in zip(
        found.encode_posterior(pixel_values), expected.encode_posterior(pixel_values), strict=True
    ):
        assert torch.equal(one, other)
    assert found.scheduler.config.prediction_type == "epsilon"
    assert found.vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize(("pad", "padding"), [("<|endoftext|>", 513), ("!", 0)])
def test_an_old_tokenizer_says_the_same_and_pads_as_it_says(
    base: Path, tmp_path: Path, pad: str, padding: int
) -> None:
    """Stable Diffusion 2's pads with "!", whose number is 0."""
    old = copy(base, tmp_path / "old")
    write_old_tokenizer(old / "tokenizer", pad)
    prompts = ["", "An image of Côte d'Ivoire."]
    found, expected = load_pipeline(str(old)).tokenizer, load_pipeline(str(base)).tokenizer
    ids = found(prompts, padding="max_length", max_length=77).input_ids
    own = expected(prompts).input_ids
    assert [row[: len(tokens)] for row, tokens in zip(ids, own, strict=True)] == own
    assert {i for row, t in zip(ids, own, strict=True) for i in row[len(t) :]} == {padding}


def test_a_tokenizer_that_forgets_its_limit_is_held_to_the_text_encoders(
    base: Path, clip: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    unlimited = copy(clip[0], tmp_path / "clip")
    path = unlimited / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "model_max_length"}))
    sources = [ModelSource(str(base), text_encoder=str(folder)) for folder in (unlimited, clip[0])]
    found, expected = (load_pipeline(source).embed_prompts(["long " * 90]) for source in sources)
    assert found.shape == (1, 77, 64)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_half_precision_are_read_with_or_without_the_name(
    tmp_path: Path, variant: str | None
) -> None:
    made = build(0)
    save_half(made, tmp_path, variant)
    loaded = load_pipeline(str(tmp_path))
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}
    for name in ("unet", "vae", "text_encoder"):
        expected = {k: v.half().float() for k, v in getattr(made, name).state_dict().items()}
        torch.testing.assert_close(getattr(loaded, name).state_dict(), expected, atol=0, rtol=0)


def test_full_weights_go_before_the_half_ones_beside_them(base: Path, tmp_path: Path) -> None:
    both = copy(base, tmp_path / "both")
    digest = model_digest(both)
    for component in ("unet", "vae", "text_encoder"):
        (path,) = (both / component).glob("*.safetensors")
        shutil.copy(path, path.with_name(f"{path.stem}.fp16{path.suffix}"))
    assert model_digest(both) == digest
    assert torch.equal(prediction(load_pipeline(str(both))), prediction(load_pipeline(str(base))))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_numbered_files_are_read_and_all_in_the_digest(
    tmp_path: Path, variant: str | None
) -> None:
    made = build(0)
    save_numbered(made, tmp_path / "model", variant)
    assert torch.equal(prediction(load_pipeline(str(tmp_path / "model"))), prediction(made))
    digest = model_digest(tmp_path / "model")
    assert model_digest(copy(tmp_path / "model", tmp_path / "copy")) == digest
    last = sorted((tmp_path / "model" / "unet").glob("*.safetensors"))[-1]
    changed = last.read_bytes()
    last.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    assert model_digest(tmp_path / "model") != digest
    last.unlink()
    with pytest.raises(InputError, match=rf"{last.name} is missing") as caught:
        find_model(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_a_whole_clip_model_lends_its_text_tower_and_tokenizer(
    base: Path, clip: tuple[Path, CLIPModel]
) -> None:
    folder, model = clip
    loaded = load_pipeline(ModelSource(str(base), text_encoder=str(folder)))
    tokens = loaded.tokenizer(
        ["", "An image of France."], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model.text_model(tokens).last_hidden_state
    found = loaded.embed_prompts(["", "An image of France."])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    own = load_pipeline(str(base))
    assert not torch.allclose(found, own.embed_prompts(["", "An image of France."]), atol=1e-2)
    names = {name.partition(".")[0] for name in loaded.text_encoder.state_dict()}
    assert "vision_model" not in names


def test_a_model_saved_with_another_text_encoder_is_one_folder(
    base: Path, clip: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    swapped = load_pipeline(ModelSource(str(base), text_encoder=str(clip[0])))
    swapped.save(tmp_path)
    again = load_pipeline(str(tmp_path))
    assert torch.equal(prediction(again), prediction(swapped))
    assert again.digest == model_digest(tmp_path)


def test_the_digest_follows_text_encoder_and_lora_wherever_they_lie(
    base: Path, clip: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file(small_lora(base), lora)
    sources = [
        ModelSource(str(base)),
        ModelSource(str(base), text_encoder=str(clip[0])),
        ModelSource(str(base), lora=str(lora)),
        ModelSource(str(base), text_encoder=str(clip[0]), lora=str(lora)),
    ]
    digests = [model_digest(find_model(source)) for source in sources]
    assert len(set(digests)) == 4
    elsewhere = copy(clip[0], tmp_path / "elsewhere")
    (elsewhere / "preprocessor_config.json").write_text("{}")  # the image side is not used
    (elsewhere / "README.md").write_text("read")
    (tmp_path / "folder").mkdir()
    shutil.copy(lora, tmp_path / "folder" / "any-name.safetensors")
    moved = ModelSource(
        str(copy(base, tmp_path / "b")), str(elsewhere), lora=str(tmp_path / "folder")
    )
    assert model_digest(find_model(moved)) == digests[3]
    (elsewhere / "tokenizer_config.json").write_text("{}")
    assert model_digest(find_model(moved)) != digests[3]


def test_a_text_encoder_of_another_width_is_one_sentence(base: Path, tmp_path: Path) -> None:
    save_whole_clip(tmp_path, hidden_size=32)
    with pytest.raises(
        InputError, match=r"should give the 64 numbers per token .* but gives 32; give"
    ) as caught:
        find_model(ModelSource(str(base), text_encoder=str(tmp_path)))
    assert str(caught.value).endswith(", or keep the model's own by --text-encoder own.")
    assert f"{base} with the text encoder {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_encoder_without_tokenizer_or_with_pickles_alone_is_one_sentence(
    base: Path, clip: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    bare = copy(clip[0], tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    source = ModelSource(str(base), text_encoder=str(bare))
    with pytest.raises(InputError, match=r"tokenizer .* should have tokenizer.json"):
        find_model(source)
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"as safetensors, but has none, and pickles .* refs/pr/N"):
        find_model(source)


@pytest.mark.parametrize(
    ("part", "setting", "value", "sentence"),
    [
        ("unet", "in_channels", 9, "should take the 4 channels .* but takes 9"),
        ("unet", "addition_embed_type", "text_time", "more than a prompt .text_time"),
        ("unet", "class_embed_type", "projection", "more than a prompt .projection"),
        ("unet", "num_class_embeds", 10, "more than a prompt .10"),
        ("unet", "encoder_hid_dim_type", "text_image_proj", "more than a prompt .text_image"),
        ("unet", "time_cond_proj_dim", 256, "more than a prompt .256"),
        ("unet", "out_channels", 8, "should predict the 4 channels .* but predicts 8"),
        ("vae", "shift_factor", 0.1, "should only scale its latents, but has shift_factor 0.1"),
        ("vae", "latents_mean", [0.5], r"should only scale .* has latents_mean \[0.5\]"),
        ("unet", "cross_attention_dim", 2048, "the 2048 numbers per token .* gives 64; .* width.$"),
        ("text_encoder", "model_type", "t5", "should be CLIP's, but is of the kind 't5'"),
    ],
)
def test_what_is_not_shaped_like_stable_diffusion_is_refused(
    base: Path, tmp_path: Path, part: str, setting: str, value: object, sentence: str
) -> None:
    path = copy(base, tmp_path / "other") / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(InputError, match=sentence) as caught:
        find_model(str(tmp_path / "other"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_model_that_lacks_weights_is_not_filled_up_with_random_ones(
    base: Path, tmp_path: Path, part: str
) -> None:
    (path,) = (copy(base, tmp_path / "lacking") / part).glob("*.safetensors")
    weights = load_file(path)
    lost = sorted(weights)[3]
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"The {part} of model .* lacks 1 of the weights"):
        load_pipeline(str(tmp_path / "lacking"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lower_precision_is_the_unets_alone(base: Path, dtype: torch.dtype) -> None:
    loaded, full = load_pipeline(str(base), "cpu", dtype), load_pipeline(str(base))
    assert loaded.dtype == dtype
    assert loaded.vae.dtype == loaded.text_encoder.dtype == torch.float32
    pixel_values = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(
        loaded.encode_posterior(pixel_values)[0], full.encode_posterior(pixel_values)[0]
    )
    found = prediction(loaded)
    assert found.dtype == torch.float32
    # Rounding to 8 bits (bfloat16) or 11 (float16) at each of some fifty layers.
    worst = {torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    expected = prediction(full)
    assert float((found - expected).norm() / expected.norm()) < worst


def test_all_components_have_their_files_named(base: Path) -> None:
    files = find_model(str(base))
    assert {name: files.names(name) for name in COMPONENTS} == {
        "unet": ["config.json", "diffusion_pytorch_model.safetensors"],
        "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
        "text_encoder": ["config.json", "model.safetensors"],
        "tokenizer": ["tokenizer.json", "tokenizer_config.json"],
        "scheduler": ["scheduler_config.json"],
    }
