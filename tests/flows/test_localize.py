"""Localisation run for real: X-rays as they are published, masks, and the built-in scenes."""

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
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import open_root
from flows.cli import app
from flows.dry_run import dry_run
from flows.localize import localize
from flows.parameters import LocalizeParameters, MineParameters, TypicalityParameters

pytestmark = pytest.mark.usefixtures("prefect_api")

Make = Callable[..., LocalizeParameters]


@pytest.fixture
def localize_parameters(parameters: Callable[..., MineParameters], tmp_path: Path) -> Make:
    """Parameters of a localisation of seconds; what is set is as for mining."""

    def make(root: Path | None = None, **changes: Any) -> LocalizeParameters:
        given = parameters(root or tmp_path / "localized").model_dump(exclude_unset=True)
        known = {name: given[name] for name in given if name in TypicalityParameters.model_fields}
        return LocalizeParameters(**{**known, **changes})

    return make


def test_xrays_as_published_are_scored_against_the_boxes_of_their_findings(
    localize_parameters: Make, tmp_path: Path
) -> None:
    parameters = localize_parameters(
        dataset=folder_of("xray", tmp_path), recipe="xray", text_encoder="own", finetune_steps=2
    )
    told = {one.what: one.value for one in dry_run(parameters)}
    assert not Path(parameters.root).exists()
    summary = localize(parameters)
    assert 0 < summary["unet_forwards"] <= told["forwards"]
    assert told["typicality"]["at_most"], "which labels are located is read from the images' rows"
    assert summary["sides"] == ["before", "after"]
    found = {one["label"]: one for one in summary["findings"]}
    # Of the findings without a box there is no score; `Infiltrate` is the label's `Infiltration`.
    assert {label: one["images"] for label, one in found.items()} == {
        "Cardiomegaly": 1,
        "Infiltration": 1,
        "Mass": 1,
    }
    assert found["Mass"]["chance"]["mean"] == pytest.approx((3 * 4 + 7 * 8) / 48**2, rel=0.05)
    assert summary["facts"]["typicality"]["timesteps"] == "0.0 to 1.0"
    root = open_root(parameters.root)
    measured = [
        sorted(read_maps(root, manifest).label) for manifest in read_manifests(root, "typicality")
    ]
    assert measured == [["Cardiomegaly", "Infiltration", "Mass"]] * 2
    (finetuned,) = read_manifests(root, "finetune")
    assert finetuned.counts["images"] == 3  # of train_val_list.txt, none of them by its box
    html = (Path(parameters.root) / "localization.html").read_text()
    assert "Infiltration" in html
    assert 'src="localization/' in html


def test_masks_are_scored_by_the_command_and_only_what_is_missing_is_computed(
    localize_parameters: Make,
    dataset: Path,
    tmp_path: Path,
    forwards: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The masks say that the left half is typical of one label; the others have no truth."""
    masks = tmp_path / "masks"
    (masks / "Almara").mkdir(parents=True)
    for image in (dataset / "Almara").iterdir():
        with Image.open(image) as scene:
            mask = np.zeros((scene.height, scene.width), np.uint8)
        mask[:, : mask.shape[1] // 2] = 255
        Image.fromarray(mask).save(masks / "Almara" / f"{image.stem}.png")
    parameters = localize_parameters(finetune_steps=2, masks=str(masks))
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in parameters.model_dump(exclude_unset=True).items()
    ]
    app(["localize", *options], exit_on_error=False, result_action="return_value")
    said = capsys.readouterr().out
    assert "by chance           before            after" in said
    assert "Almara" in said
    assert "Borvik" not in said
    draws, images = parameters.draws, 4
    # Each under the null prompt and its label; those without a mask were only trained on.
    assert forwards["images"] >= 2 * draws * 2 * images
    root = open_root(parameters.root)
    assert {m.counts["images"] for m in read_manifests(root, "typicality")} <= {1, 2, 3, 4}
    assert sum(m.counts["images"] for m in read_manifests(root, "typicality")) == 2 * images

    before = forwards["images"]
    summary = localize(parameters)
    assert forwards["images"] == before
    assert summary["computed"] == {}
    (stored,) = Path(parameters.root).glob("localization/*/*/localization.json")
    numbers = json.loads(stored.read_text())
    assert numbers == {name: summary[name] for name in numbers}
    assert numbers["all"]["chance"]["mean"] == pytest.approx(0.5)


def test_scenes_that_were_mined_are_measured_no_second_time(
    root: Path, localize_parameters: Make, forwards: Counter[str]
) -> None:
    parameters = localize_parameters(root)
    had = {stage: len(read_manifests(open_root(str(root)), stage)) for stage in STAGES}
    summary = localize(parameters)
    assert summary["computed"] == {"typicality": 2, "localization": 1}
    now = {stage: len(read_manifests(open_root(str(root)), stage)) for stage in STAGES}
    assert now == {**had, "typicality": had["typicality"] + 2}  # mined before finetuning: one of 3
    labels = [finding["label"] for finding in summary["findings"]]
    assert labels == ["Almara", "Borvik", "Cendria", "Dorrava"]
    assert 0.02 < summary["all"]["chance"]["mean"] < 0.2
    assert (root / "index.html").exists()

    before = forwards["images"]
    as_given = localize(localize_parameters(root, finetune_steps=0))
    assert as_given["sides"] == ["as given"]
    assert forwards["images"] == before  # the model before finetuning, measured above
    ours, same = (one["all"]["average_precision"] for one in (summary, as_given))
    assert same["as given"] == ours["before"]


STAGES = ("index", "finetune", "typicality")


def test_a_dataset_that_says_nothing_of_places_is_refused_before_training(
    localize_parameters: Make, dataset: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    for label in ("Almara", "Borvik"):
        shutil.copytree(dataset / label, plain / label)
    parameters = localize_parameters(dataset=str(plain))
    with pytest.raises(InputError, match="should say where in its image a label is"):
        localize(parameters)
    assert read_manifests(open_root(parameters.root), "finetune") == []
    with pytest.raises(InputError, match="should hold masks"):
        localize(localize_parameters(masks=str(tmp_path / "empty")))
