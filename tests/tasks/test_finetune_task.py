from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped] # it ships none
import pytest
import torch
from safetensors.torch import load_file

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.files import LORA_FILE
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Manifest, finished, local_folder
from diffmining_core.store.roots import open_root
from flows.parameters import MineParameters
from tasks import finetune_process
from tasks.finetune import (
    finetune,
    finetuned_model,
    held_out_ids,
    last_preview,
    losses,
    snapshot_model,
)
from tasks.finetune_process import ShardImages
from tasks.index import dataset_shards, index
from tasks.models import Device, base_model, loaded
from tasks.units import Done

CPU = Device("cpu", "float32")
OPTIONS = {
    **FinetuneOptions(steps=4, batch_size=4, learning_rate=1e-3, size=64, held_out=1).as_options(),
    **PromptTemplate().as_options(),
}


@pytest.fixture(scope="module")
def indexed(
    parameters: Callable[..., MineParameters], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A root with 16 indexed images of 4 labels."""
    root = tmp_path_factory.mktemp("finetune") / "root"
    index.fn(str(root), parameters(root).dataset, None, "mined", 6, 0.25)
    return root


@pytest.fixture
def root(indexed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(indexed, tmp_path / "root"))


def shards(root: Path) -> list[Shard]:
    (state,) = (root / "manifests" / "dataset").glob("*.json")
    return dataset_shards(str(root), state.stem)


def trained(root: Path, running: dict[str, Any], **changes: Any) -> Done:
    return finetune.fn(str(root), shards(root), base_model("tiny"), OPTIONS | changes, running, CPU)


def manifest_of(root: Path, done: Done) -> Manifest:
    return finished(open_root(str(root)), "finetune", done.key)


def unet(root: Path, done: Done, folder: str) -> dict[str, torch.Tensor]:
    model = local_folder(open_root(str(root)), manifest_of(root, done), folder)
    return load_file(model / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def watched(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A root with a finetuned model of which everything is kept."""
    root = tmp_path_factory.mktemp("watched") / "root"
    shutil.copytree(indexed, root)
    running = {"evaluate_every": 2, "preview_every": 4, "previews_per_label": 1}
    return root, trained(root, running, snapshots=[2], ema_decay=0.9)


def test_a_unit_holds_model_snapshots_losses_logs_and_previews(watched: tuple[Path, Done]) -> None:
    root, done = watched
    manifest = manifest_of(root, done)
    tops = {name.split("/")[0] for name in manifest.files}
    assert tops == {
        "model", "snapshots", "losses.json", "held_out.json", "previews", "tensorboard"
    }  # fmt: skip
    assert "previews/4.png" in manifest.files
    preview = last_preview(str(root), done.key)
    assert preview is not None
    assert preview[0] == max(int(Path(name).stem) for name in manifest.files if "previews/" in name)
    assert preview[1].startswith(b"\x89PNG")
    assert manifest.facts["labels"] == ["Almara", "Borvik", "Cendria", "Dorrava"]
    assert manifest.facts["snapshot_digests"].keys() == {"2"}
    assert manifest.facts["best_step"] in (0, 2, 4)
    assert manifest.facts["held_out_loss"].keys() == {"least", "end", "rose"}
    assert manifest.facts["precision"] == "float32"
    assert manifest.counts["images"] == 16

    columns = losses(str(root), done.key)
    assert columns["step"] == [0, 1, 2, 3]
    assert columns["learning_rate"] == [1e-3] * 4
    assert columns["held_out"]["step"] == [0, 2, 4]
    assert len(columns["held_out"]["bins"][0]) == len(columns["bins"]["loss"][0]) == 10
    assert len(held_out_ids(str(root), done.key)) == 1

    base = base_model("tiny")
    final = finetuned_model(str(root), base, done.key)
    at_two = snapshot_model(str(root), base, done.key, 2)
    for reference in (final, at_two):
        assert loaded(str(root), reference, CPU).digest == reference.digest
    with pytest.raises(LookupError, match=r"kept the models of steps \['2'\], not 3"):
        snapshot_model(str(root), base, done.key, 3)
    assert not list((root / "finetune" / done.key).glob("checkpoints/*"))


@pytest.mark.slow  # processes that import everything
def test_two_processes_train_what_one_does(watched: tuple[Path, Done], root: Path) -> None:
    alone, one = watched
    running = {"processes": 2, "micro_batch": 1, "evaluate_every": 2}
    two = trained(root, running, snapshots=[2], ema_decay=0.9)
    assert two.key == one.key
    found, expected = losses(str(root), two.key), losses(str(alone), one.key)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)
    for column in ("loss", "seen"):
        np.testing.assert_allclose(
            found["held_out"][column], expected["held_out"][column], rtol=1e-4
        )
    for folder in ("model", "snapshots/2"):
        base = load_file(base_unet())
        a, b = unet(alone, one, folder), unet(root, two, folder)
        # AdamW's first steps go by the gradient's sign, which rounding can turn where it is tiny.
        assert length(a, b) < 0.02 * length(a, base)


def base_unet() -> Path:
    from diffmining_core.models.files import find_model

    return find_model("tiny").folders["unet"] / "diffusion_pytorch_model.safetensors"


def length(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    squares = (float(((one[name] - other[name].float()) ** 2).sum()) for name in one)
    return float(sum(squares) ** 0.5)


def test_a_lora_is_kept_by_itself_too(root: Path) -> None:
    done = trained(root, {}, steps=1, held_out=0, lora_rank=2)
    manifest = manifest_of(root, done)
    assert f"lora/{LORA_FILE}" in manifest.files
    assert manifest.facts["best_step"] is None
    assert held_out_ids(str(root), done.key) == []


@pytest.mark.slow  # processes that import everything
def test_a_killed_process_ends_the_run_in_words_and_leaves_its_checkpoints(root: Path) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            trained(root, {"processes": 2, "checkpoint_every": 2}, steps=10_000, held_out=0)
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not (markers := list(root.glob("finetune/*/checkpoints/*.json"))):
        assert thread.is_alive()
        time.sleep(0.2)
    # The newest is one of the two that train; the others started it.
    processes = psutil.Process().children(recursive=True)
    max(processes, key=lambda process: process.create_time()).kill()
    thread.join(timeout=120)
    assert markers
    assert isinstance(raised[0], ChildProcessError)
    assert "killed by signal 9" in str(raised[0])
    assert list(root.glob("finetune/*/checkpoints/*.json"))


@pytest.mark.slow  # processes that import everything
def test_what_a_process_refuses_reaches_the_user_as_it_is(root: Path) -> None:
    with pytest.raises(InputError, match="2 processes cannot share a batch of 1"):
        trained(root, {"processes": 2}, batch_size=1)


def test_rows_of_one_image_are_one_image_with_several_labels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"image_id": "1", "uri": "/1.png", "width": 64, "height": 64}
    other = {**row, "image_id": "2", "uri": "/2.png"}
    rows = [
        ShardImage(**row, label="Mass"),  # type: ignore[arg-type] # mixed values
        ShardImage(**row, label="Nodule", detail="old"),  # type: ignore[arg-type] # mixed values
        ShardImage(**other, label="Mass", declared=True),  # type: ignore[arg-type] # mixed values
    ]
    monkeypatch.setattr(finetune_process, "good_images", lambda root, shard: rows)

    class TwoImages:
        images = 2

    images = ShardImages(str(tmp_path), [TwoImages()], 64)  # type: ignore[list-item] # all it is asked
    assert len(images) == 2
    assert images.describe(0).labels == ("Mass", "Nodule")
    assert images.describe(0).detail == "old"
    assert images.describe(1).labels == ("Mass",)
    assert images.load(1) is None  # declared, and not there
    with pytest.raises(InputError, match=r"/1\.png is not there"):
        images.load(0)
