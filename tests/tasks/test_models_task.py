from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_models import save_whole_clip

from diffmining_core.errors import InputError
from diffmining_core.models.files import TINY, ModelSource, find_model, model_digest
from diffmining_core.models.pipelines import load_pipeline
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.models import Device, ModelReference, base_model, choose_device, loaded

CPU = Device("cpu", "float32")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    save_whole_clip(tmp_path / "clip")
    return tmp_path / "clip"


def test_a_base_model_is_referred_to_by_its_source_and_digest(clip: Path) -> None:
    own = base_model(TINY)
    assert own == ModelReference(ModelSource(TINY), model_digest(find_model(TINY)))
    assert own.name == "tiny"
    swapped = base_model(ModelSource(TINY, text_encoder=str(clip)))
    assert swapped.digest != own.digest
    assert swapped.name == f"tiny with the text encoder {clip}"


def test_a_base_model_is_loaded_once_with_what_is_changed_of_it(clip: Path) -> None:
    reference = base_model(ModelSource(TINY, text_encoder=str(clip)))
    pipeline = loaded("", reference, CPU)
    assert loaded("", reference, CPU) is pipeline
    assert pipeline.digest == reference.digest
    expected = load_pipeline(reference.source)
    assert torch.equal(pipeline.embed_prompts(["a"]), expected.embed_prompts(["a"]))


def test_a_finetuned_model_is_loaded_from_its_folder_of_the_unit_as_it_is(
    clip: Path, tmp_path: Path
) -> None:
    """Not with the base's changes once more: they went into what was saved."""
    for folder in ("model", "snapshots/100"):
        pipeline = load_pipeline(ModelSource(TINY, text_encoder=str(clip)))
        with torch.no_grad():
            pipeline.unet.conv_out.bias.fill_(len(folder))
        pipeline.save(tmp_path / "saved" / folder)
    shutil.rmtree(clip)

    def produce(attempt: Attempt) -> None:
        attempt.write_folder(tmp_path / "saved" / "model", "model")
        attempt.write_folder(tmp_path / "saved" / "snapshots" / "100", "snapshots/100")

    root = open_root(f"{tmp_path}/results")
    manifest = complete(root, Unit("finetune", "finetune-0", ("a",), {}), produce)
    source = ModelSource(TINY, text_encoder=str(clip))
    for folder in ("model", "snapshots/100"):
        reference = ModelReference(source, f"digest of {folder}", manifest.key, folder)
        pipeline = loaded(root.url, reference, CPU)
        assert float(pipeline.unet.conv_out.bias[0]) == len(folder)
        assert pipeline.digest == model_digest(tmp_path / "saved" / folder)


def test_other_weights_under_the_same_name_on_this_machine_are_refused(tmp_path: Path) -> None:
    """Where the run was planned, the folder held another model."""
    folder = tmp_path / "model"
    load_pipeline(ModelSource(TINY)).save(folder)
    planned = base_model(ModelSource(str(folder)))
    assert loaded("", planned, CPU).digest == planned.digest
    loaded.cache_clear()  # as in the worker's own process

    other = load_pipeline(ModelSource(TINY))
    with torch.no_grad():
        other.unet.conv_out.bias.add_(1)
    shutil.rmtree(folder)
    other.save(folder)
    with pytest.raises(InputError, match=r"should have the digest .* but on this machine it has"):
        loaded("", planned, CPU)


def test_a_gpu_measures_in_float16_and_a_cpu_in_float32_unless_another_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU
    assert choose_device("cpu", "bfloat16") == Device("cpu", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_size, **_options: None)
    assert choose_device("auto").dtype == choose_device("cuda:1").dtype == "float16"
    assert choose_device("cuda:1", "bfloat16") == Device("cuda:1", "bfloat16")
