from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from diffmining_core.errors import InputError
from diffmining_core.models import tiny
from diffmining_core.models.files import (
    COMPONENTS,
    TINY,
    Geometry,
    ModelSource,
    chosen_weights,
    find_model,
    model_digest,
    model_geometry,
)

_TINY = Path(tiny.__file__).parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the built-in pipeline to spoil."""
    folder = tmp_path / "model"
    for name in COMPONENTS:
        shutil.copytree(_TINY / name, folder / name)
    return folder


def test_the_built_in_model_is_found_and_has_the_geometry_of_its_training() -> None:
    assert model_geometry(find_model(TINY)) == Geometry(size=128, cell=8)


def test_a_folder_is_taken_as_it_is(model: Path) -> None:
    files = find_model(str(model))
    assert files.folders == {name: model / name for name in COMPONENTS}
    assert files.source == ModelSource(str(model))


def test_a_folder_that_is_no_pipeline_says_what_is_missing(model: Path) -> None:
    shutil.rmtree(model / "unet")
    with pytest.raises(InputError, match=r"not a Stable Diffusion pipeline.* but unet is missing"):
        find_model(str(model))
    shutil.rmtree(model / "vae")
    with pytest.raises(InputError, match="but unet, vae are missing"):
        find_model(str(model))


def test_a_file_is_no_pipeline(model: Path) -> None:
    with pytest.raises(InputError, match="not a Stable Diffusion pipeline"):
        find_model(str(model / "unet" / "config.json"))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no model folder {tmp_path}/nowhere"):
        find_model(str(tmp_path / "nowhere"))


def test_a_hub_id_without_a_network_is_one_sentence_and_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The hub client reads HF_HUB_OFFLINE once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        find_model("nobody/there-is-no-such-model")
    assert time.process_time() - started < 2
    message = str(caught.value)
    assert message.startswith("Model nobody/there-is-no-such-model is no folder here")
    assert "check the id and the network" in message
    assert "\n" not in message


def test_the_digest_follows_the_bytes_and_not_the_place(model: Path, tmp_path: Path) -> None:
    digest = model_digest(model)
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    assert model_digest(elsewhere) == digest
    weights = elsewhere / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert model_digest(elsewhere) != digest


@pytest.mark.parametrize("name", ["special_tokens_map.json", "merges.txt"])
def test_the_digest_sees_configurations_and_vocabularies(model: Path, name: str) -> None:
    digest = model_digest(model)
    (model / "tokenizer" / name).write_text("changed")
    assert model_digest(model) != digest


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "v1-5-pruned.safetensors",
    ],
)
def test_the_digest_ignores_what_is_never_loaded(model: Path, name: str) -> None:
    digest = model_digest(model)
    (model / name).write_bytes(b"more")
    assert model_digest(model) == digest


def test_a_pipeline_that_does_not_say_its_size_is_refused(model: Path) -> None:
    path = model / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": None}))
    with pytest.raises(InputError, match="sample_size"):
        model_geometry(find_model(str(model)))


@pytest.mark.parametrize("text", ["{", "[]", '[{"a": ' * 100_000], ids=["cut", "list", "deep"])
@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_configuration_that_cannot_be_read_is_named(model: Path, part: str, text: str) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    (model / part / name).write_text(text)
    with pytest.raises(InputError, match=f"The {part} of model .* its {name} cannot be read"):
        find_model(str(model))


def test_a_source_says_what_is_changed_of_its_pipeline() -> None:
    assert str(ModelSource("tiny")) == "tiny"
    assert str(ModelSource("a/b@v1", "c/d", "e/f")) == (
        "a/b@v1 with the text encoder c/d and with the LoRA e/f"
    )


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        ([], None, []),
        (["model.bin", "flax_model.msgpack"], None, []),
        (["model.fp16.safetensors", "model.safetensors"], None, ["model.safetensors"]),
        (
            [
                "diffusion_pytorch_model.non_ema.safetensors",
                "diffusion_pytorch_model.fp16.safetensors",
            ],
            "fp16",
            ["diffusion_pytorch_model.fp16.safetensors"],
        ),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.fp16-00001-of-00002.safetensors",
                "model.fp16-00002-of-00002.safetensors",
                "model.safetensors.index.fp16.json",
            ],
            None,
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
        (
            ["model.safetensors.index.fp16.json", "model-00001-of-00001.fp16.safetensors"],
            "fp16",
            ["model.safetensors.index.fp16.json", "model-00001-of-00001.fp16.safetensors"],
        ),
    ],
)
def test_one_set_of_weights_is_chosen(
    names: list[str], variant: str | None, chosen: list[str]
) -> None:
    assert chosen_weights(names) == (variant, chosen)
