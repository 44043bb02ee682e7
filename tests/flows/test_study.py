"""The study of finetuning, run for real on a few drawn scenes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from published_layouts import folder_of

from diffmining_core.errors import InputError
from diffmining_core.recipes import TRAIN
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from flows.index import index_split
from flows.parameters import MineParameters, StudyParameters
from flows.study.finetuning import study_finetuning
from tasks.index import index

pytestmark = pytest.mark.usefixtures("prefect_api")

Make = Callable[..., StudyParameters]


@pytest.fixture
def study_parameters(parameters: Callable[..., MineParameters], tmp_path: Path) -> Make:
    """Four steps of finetuning, looked at after two and at the end."""

    def make(**changes: Any) -> StudyParameters:
        given = parameters(tmp_path / "study").model_dump(exclude_unset=True)
        return StudyParameters(**{**given, "finetune_steps": 4, "at": (2, 4), **changes})

    return make


def test_truth_is_measured_at_each_step_of_one_finetuning(
    study_parameters: Make, forwards: Counter[str]
) -> None:
    parameters = study_parameters()
    summary = study_finetuning(parameters)
    assert [point["step"] for point in summary["points"]] == [0, 2, 4]
    assert {point["base_rate"] for point in summary["points"]} == {
        summary["points"][0]["base_rate"]
    }
    assert len({point["average_precision"] for point in summary["points"]}) == 3
    root = open_root(parameters.root)
    (finetuned,) = read_manifests(root, "finetune")
    models = {manifest.inputs[1] for manifest in read_manifests(root, "typicality")}
    assert len(models) == 3
    assert finetuned.facts["digest"] in models  # after all steps it is the model of the end
    page = Path(parameters.root) / "study.html"
    assert "Truth against steps" in page.read_text()
    (overview,) = Path(parameters.root).glob("study/*/attempt-*/figures/overview.png")
    with Image.open(overview) as picture:
        assert picture.width > 500

    before = forwards["images"]
    again = study_finetuning(parameters)
    assert again["points"] == summary["points"]
    assert forwards["images"] == before


def test_masks_are_a_known_answer_told_apart_by_label(
    study_parameters: Make, dataset: Path, tmp_path: Path
) -> None:
    """The masks say that the upper half is typical of two of the labels."""
    for label in ("Almara", "Borvik"):
        (tmp_path / "masks" / label).mkdir(parents=True)
        for image in (dataset / label).iterdir():
            with Image.open(image) as scene:
                mask = np.zeros((scene.height, scene.width), np.uint8)
            mask[: len(mask) // 2] = 255
            Image.fromarray(mask).save(tmp_path / "masks" / label / f"{image.stem}.png")
    summary = study_finetuning(study_parameters(at=(4,), masks=str(tmp_path / "masks")))
    for point in summary["points"]:
        assert point["precision_by_label"].keys() == {"Almara", "Borvik"}
        assert point["base_rate"] == pytest.approx(0.5)
    assert "masks" in summary["facts"]["dataset"]["known answer"]
    stored = json.loads(
        next(Path(study_parameters().root).glob("study/*/*/study.json")).read_text()
    )
    assert stored["points"] == summary["points"]


def test_xrays_are_trained_on_in_the_training_split_and_held_against_their_boxes(
    study_parameters: Make, tmp_path: Path
) -> None:
    """The boxed images are of the test split: to train on them would be to train on the answer."""
    parameters = study_parameters(
        dataset=folder_of("xray", tmp_path), recipe="xray", text_encoder="own", min_images=1
    )
    summary = study_finetuning(parameters)
    (finetuned,) = read_manifests(open_root(parameters.root), "finetune")
    _, training_split = index_split(parameters, TRAIN, index.fn)
    assert finetuned.inputs[1:] == tuple(shard.content_id for shard in training_split)
    for point in summary["points"]:
        assert point["precision_by_label"].keys() == {"Cardiomegaly", "Infiltration", "Mass"}
        assert 0 < point["base_rate"] < 0.2
        assert "highest" in point["hits"]
    assert summary["facts"]["dataset"]["known answer"] == "boxes"


def test_a_dataset_without_a_known_answer_is_refused_before_training(
    study_parameters: Make, dataset: Path, tmp_path: Path
) -> None:
    unknown = shutil.copytree(dataset, tmp_path / "unknown")
    (unknown / "truth.parquet").unlink()
    parameters = study_parameters(dataset=str(unknown))
    with pytest.raises(InputError, match=r"should have a known answer.*have no boxes; give"):
        study_finetuning(parameters)
    assert not read_manifests(open_root(parameters.root), "finetune")


@pytest.mark.parametrize("wrong", [{"at": (5,)}, {"at": (-1,)}, {"finetune_steps": 0, "at": ()}])
def test_steps_outside_of_the_finetuning_are_refused(
    study_parameters: Make, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="at should be steps from 1"):
        study_parameters(**wrong).snapshots()


def test_without_wishes_early_steps_are_looked_at_more_closely(study_parameters: Make) -> None:
    assert study_parameters(at=(), finetune_steps=800).snapshots() == [100, 200, 400, 600, 800]
