from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from diffmining_core.errors import InputError
from diffmining_core.models.files import (
    COMPONENTS,
    TINY,
    Geometry,
    find_model,
    model_digest,
    model_geometry,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder laid out like a pipeline, with a few bytes for weights."""
    folder = tmp_path / "model"
    for name in COMPONENTS:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"part": name}))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return folder


def test_the_built_in_model_is_found_and_has_the_geometry_of_its_training() -> None:
    assert model_geometry(find_model(TINY)) == Geometry(size=128, cell=8)


def test_a_folder_is_taken_as_it_is(model: Path) -> None:
    assert find_model(str(model)) == model


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
    (elsewhere / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weightt")
    assert model_digest(elsewhere) != digest


@pytest.mark.parametrize("name", ["config.json", "merges.txt"])
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


def test_a_pipeline_without_configurations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample_size"):
        model_geometry(tmp_path)
