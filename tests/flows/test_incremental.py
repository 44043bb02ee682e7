"""A dataset that grows, shrinks or is corrected costs the least work that is right."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stored import manifests, results

from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.roots import open_root
from flows.mine import mine
from flows.parameters import MineParameters

Make = Callable[..., MineParameters]

KEPT = ("Cendria", "Dorrava")
"""Labels that the tests leave alone."""


@pytest.fixture
def photos(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may change."""
    return Path(shutil.copytree(dataset, tmp_path / "streets"))


@pytest.fixture
def mined(prefect_api: str, photos: Path, parameters: Make, tmp_path: Path) -> Path:
    """The root of a run over the photos."""
    mine(parameters(tmp_path / "mined", dataset=str(photos), before_shards=0))
    return tmp_path / "mined"


def again(mined: Path, photos: Path, parameters: Make, **changes: Any) -> dict[str, Any]:
    return mine(parameters(mined, dataset=str(photos), before_shards=0, **changes))


def selection(root: Path, summary: dict[str, Any]) -> pa.Table:
    """The patches that the last page shows."""
    report = finished(open_root(str(root)), "report", summary["report"])
    manifest = finished(open_root(str(root)), "selection", report.inputs[0])
    return read_table(open_root(str(root)), manifest, "selection.parquet")


def made(root: Path, before: dict[str, Any], stage: str) -> list[Any]:
    """The manifests of a stage that were not there before."""
    return [m for unit, m in manifests(root).items() if m.stage == stage and unit not in before]


def test_a_relabelled_image_costs_itself_and_its_two_labels(
    mined: Path, photos: Path, parameters: Make, forwards: Counter[str]
) -> None:
    before = results(mined)
    (photos / "Almara" / "Almara_00001.png").rename(photos / "Borvik" / "moved.png")
    forwards.clear()
    summary = again(mined, photos, parameters)
    computed = summary["computed"]
    assert (computed["index"], computed["typicality"], computed["patches"]) == (1, 1, 1)
    assert "finetune" not in computed
    (measured,) = made(mined, before, "typicality")
    assert measured.counts["images"] == 1
    embedded = made(mined, before, "features")
    assert {m.parameters["label"] for m in embedded} == {"Almara", "Borvik"}
    assert {m.facts["label"] for m in made(mined, before, "clusters")} == {"Almara", "Borvik"}
    dift = sum(m.counts.get("unet_forwards", 0) for m in embedded)
    assert forwards["images"] == summary["unet_forwards"] == 2 * 2 * 1 + dift
    assert sum(m.counts["images"] for m in embedded) < 8, "patches embedded before are taken over"
    assert summary["labels"] == {"Almara": 3, "Borvik": 5, "Cendria": 4, "Dorrava": 4}
    assert any("got another label" in note for note in summary["notes"])
    assert {unit: results(mined)[unit] for unit in before} == before, "nothing is overwritten"
    shown = selection(mined, summary)
    places = set(zip(shown["uri"].to_pylist(), shown["label"].to_pylist(), strict=True))
    assert (str(photos / "Borvik" / "moved.png"), "Borvik") in places
    assert not any(uri.endswith("Almara_00001.png") for uri, _ in places)
    assert again(mined, photos, parameters)["computed"] == {}


def test_a_removed_image_costs_no_forward(
    mined: Path, photos: Path, parameters: Make, forwards: Counter[str]
) -> None:
    before = results(mined)
    (photos / "Almara" / "Almara_00001.png").unlink()
    forwards.clear()
    summary = again(mined, photos, parameters)
    assert not {"index", "finetune", "typicality", "patches"} & summary["computed"].keys()
    assert summary["computed"]["clusters"] == 1, "a label that changed nothing keeps its clusters"
    assert (summary["images"], summary["labels"]["Almara"]) == (15, 3)
    assert not any("Almara_00001" in uri for uri in selection(mined, summary)["uri"].to_pylist())
    assert (
        forwards["images"]
        == summary["unet_forwards"]
        == sum(m.counts.get("unet_forwards", 0) for m in made(mined, before, "features"))
    )

    (photos / "Almara" / "Almara_00001.png").write_bytes(
        (photos / "Almara" / "Almara_00002.png").read_bytes()
    )
    summary = again(mined, photos, parameters)
    assert summary["images"] == 16, "the same content at two places is two images"


def test_a_dataset_put_back_as_it_was_finds_what_was_made_of_it(
    mined: Path, photos: Path, parameters: Make, tmp_path: Path
) -> None:
    before = results(mined)
    image = photos / "Almara" / "Almara_00001.png"
    image.rename(tmp_path / "away.png")
    again(mined, photos, parameters)
    (tmp_path / "away.png").rename(image)
    summary = again(mined, photos, parameters)
    assert summary["computed"].keys() <= {"dataset"}
    assert {unit: results(mined)[unit] for unit in before} == before


def test_a_corrected_dataset_ends_as_one_mined_from_scratch(
    prefect_api: str, photos: Path, parameters: Make, tmp_path: Path
) -> None:
    # Without finetuning: a model that is kept knows what it was trained on.
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    again(grown, photos, parameters, finetune_steps=0)
    (photos / "Almara" / "Almara_00001.png").rename(photos / "Borvik" / "moved.png")
    (photos / "Cendria" / "Cendria_00002.png").unlink()
    shutil.copy(photos / "Dorrava" / "Dorrava_00001.png", photos / "Dorrava" / "again.png")
    tables = []
    for root in (grown, fresh):
        tables.append(selection(root, again(root, photos, parameters, finetune_steps=0)))
    columns = ["label", "kind", "label_rank", "image_id", "y", "x"]
    assert tables[0].select(columns).equals(tables[1].select(columns))
    np.testing.assert_allclose(
        tables[0]["typicality"].to_numpy(), tables[1]["typicality"].to_numpy(), rtol=1e-4, atol=1e-6
    )


def test_a_retrained_model_measures_only_what_is_still_there(
    mined: Path, photos: Path, parameters: Make, forwards: Counter[str]
) -> None:
    (photos / "Almara" / "Almara_00001.png").unlink()
    forwards.clear()
    summary = again(mined, photos, parameters, retrain=True)
    assert summary["computed"]["finetune"] == 1
    before = 6 * 2 + 2 * 2 * 15
    embedded = made(mined, {}, "features")
    assert forwards["images"] == summary["unet_forwards"]
    assert forwards["images"] - before <= sum(m.counts.get("unet_forwards", 0) for m in embedded)
    assert not summary["notes"]
    assert again(mined, photos, parameters)["computed"] == {}
