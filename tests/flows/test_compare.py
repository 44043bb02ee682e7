"""The comparison, run for real on a few drawn scenes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import save_whole_clip

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import read_manifests, retract
from diffmining_core.store.roots import open_root
from flows.cli import app
from flows.compare import compare
from flows.parameters import CompareParameters, MineParameters

pytestmark = pytest.mark.usefixtures("prefect_api")

Make = Callable[..., CompareParameters]


@pytest.fixture
def compare_parameters(parameters: Callable[..., MineParameters], tmp_path: Path) -> Make:
    """Parameters of a comparison of seconds; what is set is as for mining."""

    def make(root: Path | None = None, **changes: Any) -> CompareParameters:
        given = parameters(root or tmp_path / "compared").model_dump(exclude_unset=True)
        small = {
            "doersch_seeds": 8,
            "doersch_kept": 4,
            "classifier_steps": 3,
            "halvings": 1,
        }
        return CompareParameters(**{**given, **small, **changes})

    return make


@pytest.fixture
def clip_folder(tmp_path: Path) -> str:
    save_whole_clip(tmp_path / "clip")
    return str(tmp_path / "clip")


def test_all_ways_are_measured_on_a_mined_root_whose_typicality_is_taken(
    root: Path, compare_parameters: Make, clip_folder: str, forwards: Counter[str]
) -> None:
    opened = open_root(str(root))
    had = {stage: len(read_manifests(opened, stage)) for stage in ("finetune", "typicality")}
    summary = compare(compare_parameters(root, clip=clip_folder))
    methods = {method["name"]: method for method in summary["methods"]}
    assert list(methods) == ["typicality", "Doersch", "CLIP", "classifier", "random"]
    assert {stage: len(read_manifests(opened, stage)) for stage in had} == had
    for name, method in methods.items():
        assert 0 <= method["hits"] <= 1
        assert [part["images"] for part in method["growth"]] == [10, 16]  # two shards, and all
        assert all(part["seconds"] > 0 for part in method["growth"])
        has_maps = name not in ("Doersch", "random")
        assert (method["average_precision"] is not None) == has_maps
        assert set(method["purity"]) == {"Almara", "Borvik", "Cendria", "Dorrava"}
        assert (method["training_seconds"] > 0) == (name in ("typicality", "classifier"))
    mined = json.loads((root / "summary.json").read_text())
    ours = methods["typicality"]
    assert ours["hits"] == mined["hits"]["highest"]
    assert ours["average_precision"] == pytest.approx(mined["average_precision"]["after"])
    assert ours["purity"] == mined["cluster_purity"]
    assert methods["random"]["hits"] == pytest.approx(mined["hits"]["random"], abs=0.2)
    html = (root / "compare.html").read_text()
    assert "What finds what is typical in streets" in html
    assert len(re.findall(r"<th scope=\"row\">", html)) == 2 * len(methods)

    before = forwards["images"]
    again = compare(compare_parameters(root, clip=clip_folder))
    assert again["methods"] == summary["methods"]
    assert again["computed"] == {}
    assert forwards["images"] == before


def test_the_command_goes_on_where_it_stopped_to_the_same_patches(
    root: Path, compare_parameters: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a CLIP model that baseline is left out; no maps of Doersch et al. are kept."""
    parameters = compare_parameters(root, baselines=("doersch",), halvings=0)
    options = [
        f"--{name.replace('_', '-')}={one}"
        for name, value in parameters.model_dump(exclude_unset=True).items()
        for one in (value if isinstance(value, tuple) else [value])
    ]
    app(["compare", *options], exit_on_error=False, result_action="return_value")
    said = capsys.readouterr().out
    assert "best cluster" in said
    assert re.search(r"Doersch +\d+%", said)
    assert "classifier" not in said
    opened = open_root(str(root))
    stages = ("doersch_cells", "doersch_matches", "doersch_detectors", "doersch_elements")
    first = {
        stage: {m.key: {n: f["sha256"] for n, f in m.files.items()} for m in manifests}
        for stage in stages
        if (manifests := read_manifests(opened, stage))
    }
    assert [len(first[stage]) for stage in stages] == [3, 3 * 4, 4, 1]
    for stage in stages:
        for key in sorted(first[stage])[::2]:
            retract(opened, stage, key)
    summary = compare(parameters)
    assert summary["computed"] == {stage: -(-len(first[stage]) // 2) for stage in stages}
    again = {
        stage: {
            m.key: {n: f["sha256"] for n, f in m.files.items()}
            for m in read_manifests(opened, stage)
        }
        for stage in stages
    }
    assert again == first


def test_without_a_known_answer_seconds_and_patches_are_left(
    compare_parameters: Make, dataset: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(dataset, tmp_path / "plain")
    (plain / "truth.parquet").unlink()
    parameters = compare_parameters(
        dataset=str(plain), finetune_steps=0, baselines=("random",), halvings=0
    )
    summary = compare(parameters)
    assert [method["hits"] for method in summary["methods"]] == [None, None]
    assert [row[1:5] for row in summary["table"]["rows"]] == [["–"] * 4] * 2
    assert (Path(parameters.root) / "compare.html").exists()


def test_clip_needs_a_model_that_is_there(compare_parameters: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --clip"):
        compare(compare_parameters(baselines=("clip",)))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(InputError, match="should be a whole CLIP model"):
        compare(compare_parameters(clip=str(tmp_path / "text")))
    assert not (tmp_path / "compared").exists()


def test_all_baselines_are_compared_if_none_is_named(compare_parameters: Make) -> None:
    assert compare_parameters().compared() == ["doersch", "classifier", "random"]
    assert compare_parameters(clip="x").compared() == ["doersch", "clip", "classifier", "random"]
    assert compare_parameters(baselines=("random", "doersch")).compared() == ["doersch", "random"]


def test_detectors_can_be_trained_as_the_released_code_does(
    root: Path, compare_parameters: Make
) -> None:
    """Seeds, the best of them and three rounds; another training is another result."""
    given = {"baselines": ("doersch",), "halvings": 0}
    compare(compare_parameters(root, **given, doersch_training="fast"))
    stages = ("doersch_detectors", "doersch_elements")
    had = [{m.key for m in read_manifests(open_root(str(root)), stage)} for stage in stages]
    summary = compare(compare_parameters(root, **given, doersch_training="reference"))
    made = [
        [m for m in read_manifests(open_root(str(root)), stage) if m.key not in keys]
        for stage, keys in zip(stages, had, strict=True)
    ]
    assert sorted(str(m.parameters.get("round")) for m in made[0]) == ["0", "1", "2", "None"]
    assert {m.parameters["negatives"] for m in made[0] if "round" in m.parameters} == {25_000}
    assert [m.parameters["count"] for m in made[1]] == [100]
    assert {"Doersch"} <= {method["name"] for method in summary["methods"]}
