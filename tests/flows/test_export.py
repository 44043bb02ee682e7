"""The commands that take a mined root elsewhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from diffmining_core import open_results
from diffmining_core.errors import InputError
from flows import export

Output = pytest.CaptureFixture[str]
Run = tuple[Path, dict[str, Any], int]


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("coco", {"annotations.json"}),
        ("huggingface", {"README.md", "data"}),
        ("fiftyone", {"metadata.json", "samples.json", "data", "fields"}),
        ("csv", {"selection.csv", "clusters.csv", "images.csv", "before.csv"}),
    ],
)
def test_a_mined_root_is_exported(
    form: Any, files: set[str], first_run: Run, tmp_path: Path, capsys: Output
) -> None:
    export.export(str(first_run[0]), form=form, to=str(tmp_path / "there"))
    assert files <= {path.name for path in (tmp_path / "there").iterdir()}
    assert f"Written to {tmp_path / 'there'}" in capsys.readouterr().out


def test_the_numbers_are_those_of_the_run(first_run: Run, tmp_path: Path) -> None:
    root, summary, _ = first_run
    results = open_results(str(root))
    assert results.labels == sorted(summary["labels"])
    assert len(set(results.images()["image_id"].to_pylist())) == summary["images"]
    maps = dict(results.typicality_maps(results.labels[0]))
    means = {
        row["image_id"]: row["typicality"] for row in results.images(results.labels[0]).to_pylist()
    }
    assert {one: pytest.approx(maps[one].mean(), abs=1e-7) for one in maps} == means
    assert results.features(results.labels[0]).num_rows == 12
    export.export(str(root), form="csv", to=str(tmp_path / "csv"))
    with (tmp_path / "csv" / "clusters.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == results.clusters().num_rows


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_figures_of_a_label(form: Any, first_run: Run, tmp_path: Path, capsys: Output) -> None:
    options = {"form": form, "to": str(tmp_path / form), "label": "Almara"}
    export.figures(str(first_run[0]), **options, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert sorted(said["files"]) == sorted(path.name for path in (tmp_path / form).iterdir())
    assert any(name.endswith(f"-strips.{form}") for name in said["files"])


def test_figures_of_all_labels_have_an_overview(first_run: Run, tmp_path: Path) -> None:
    export.figures(str(first_run[0]), form="svg", to=str(tmp_path / "all"))
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert "overview.svg" in names and len(names) > 4


def test_what_cannot_be_exported_is_refused(first_run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"should hold nothing yet, but has thesis.tex"):
        export.export(str(first_run[0]), form="csv", to=str(tmp_path / "full"))
    with pytest.raises(InputError, match="no finished page"):
        export.export(str(tmp_path / "full"), form="csv", to=str(tmp_path / "there"))
    with pytest.raises(InputError, match="no label 'Paris'"):
        export.figures(str(first_run[0]), form="png", to=str(tmp_path / "p"), label="Paris")
    assert not any((tmp_path / "p").iterdir())
