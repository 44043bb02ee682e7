"""Redrawing run for real: every stage to the page, what a rerun computes, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import read_manifests, retract
from diffmining_core.store.roots import open_root
from flows.cli import app
from flows.dry_run import dry_run
from flows.parameters import TranslateParameters
from flows.translate import translate

pytestmark = pytest.mark.usefixtures("prefect_api")

Make = Callable[..., TranslateParameters]
TARGETS = ("Almara", "Borvik", "Cendria")
EACH = 9 + 5 + 4 + 2 * 2 * 5
"""Forwards to redraw an image under two labels: inversion, its error, carried over, guided."""


@pytest.fixture
def photos(scenes: Path, tmp_path: Path) -> Path:
    """Three scenes of each country, and what is planted in them."""
    for country in scenes.iterdir():
        if country.is_dir():
            (tmp_path / "photos" / country.name).mkdir(parents=True)
            for image in sorted(country.iterdir())[:3]:
                shutil.copy(image, tmp_path / "photos" / country.name)
    shutil.copy(scenes / "truth.parquet", tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def translate_parameters(photos: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> TranslateParameters:
        small: dict[str, Any] = {
            "dataset": str(photos),
            "root": str(tmp_path / "root"),
            "size": 64,
            "finetune_steps": 0,
            "draws": 2,
            "shard_rows": 4,
            "patch_size": 16,
            "patches_per_image": 3,
            "k": 3,
            "targets": TARGETS,
            "per_label": 2,
            "steps": 5,
            "inversion_stride": 100,
            "device": "cpu",
        }
        return TranslateParameters(**{**small, **changes})

    return make


def test_images_are_redrawn_measured_and_grouped_and_only_what_is_missing_is_computed(
    translate_parameters: Make, forwards: Counter[str]
) -> None:
    parameters = translate_parameters()
    told = {one.what: one.value for one in dry_run(parameters, cost_per_hour=2.5)}
    assert not Path(parameters.root).exists()
    forwards.clear()
    summary = translate(parameters)
    root = open_root(parameters.root)
    assert told["images redrawn"] == 6
    assert told["translation"]["forwards"] == 6 * EACH and not told["translation"]["at_most"]
    assert told["typicality"]["forwards"] == 2 * parameters.draws * (6 + 12)
    assert 0 < summary["unet_forwards"] <= told["forwards"] == 6 * EACH + 4 * 18 + 8 * 3 * 6
    assert told["cost"] == pytest.approx(2.5 * told["time"] / 3600)
    pictures = sum(
        file.stat().st_size for file in Path(parameters.root, "translation").rglob("*.parquet")
    )
    assert 0 < pictures <= told["translation"]["bytes"]
    redrawn = read_manifests(root, "translation")
    assert len(redrawn) > 1, "several shards"
    assert sum(one.counts["images"] for one in redrawn) == 6
    assert sum(one.counts["unet_forwards"] for one in redrawn) == 6 * EACH
    measured = {one.key: one.counts for one in read_manifests(root, "typicality")}
    assert sum(one["pairs"] for one in measured.values()) == 6 + 12
    assert forwards["images"] == summary["unet_forwards"] > 6 * EACH

    assert summary["labels"] == list(TARGETS)
    assert summary["sequences"] == 18
    assert sum(one["members"] for one in summary["clusters"]) == 18
    assert set(summary["truth"]["clusters"][0]) >= {"cluster", "kind", "purity"}
    assert any("shortened" in note and "dB" in note for note in summary["facts"]["notes"])
    page = Path(parameters.root) / "parallel.html"
    assert summary["page"] == str(page)
    for picture in re.findall(r'(?:src|href)="(parallel_report/[^"]+)"', page.read_text()):
        assert (page.parent / picture).is_file()

    before = forwards["images"]
    again = translate(parameters)
    assert forwards["images"] == before and again["computed"] == {}
    retract(root, "translation", redrawn[0].key)
    mended = translate(parameters)
    assert forwards["images"] == before + redrawn[0].counts["images"] * EACH
    assert mended["clusters"] == summary["clusters"], "redrawn alike, so nothing else is new"


def test_the_command_says_what_it_would_take_and_takes_it(
    translate_parameters: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = translate_parameters()
    words = ["translate", "--dataset", parameters.dataset, "--root", parameters.root]
    unset = {"dataset", "root", "targets", "per_label"}
    small = parameters.model_dump(exclude=unset, exclude_unset=True)
    for name, value in small.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    app([*words, "--per-label", "0", "--dry-run"], result_action="return_value")
    said = capsys.readouterr().out
    assert "15, each under 4 labels" in said
    assert f"{15 * (9 + 5 + 4 + 4 * 2 * 5):,} forwards, about" in said
    assert not Path(parameters.root).exists()
    chosen = ["--per-label", "2", "--targets", "Almara", "--targets", "Elsund"]
    app([*words, *chosen], result_action="return_value")
    said = capsys.readouterr().out
    assert "12 sequences in 2 joint clusters" in said and "parallel.html" in said
    (told,) = Path(parameters.root).glob("parallel_report/*/*/parallel.json")
    assert json.loads(told.read_text())["labels"] == ["Almara", "Elsund"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 7}, "steps must divide 1000, but are 7"),
        ({"inversion_stride": 3}, "inversion_stride must divide 200"),
        ({"targets": ("Almara", "Nowhere")}, "'Nowhere' is none; it has Almara, Borvik"),
        ({"targets": ("Almara",)}, "takes two, but there is 1"),
    ],
)
def test_what_cannot_be_redrawn_is_one_sentence(
    translate_parameters: Make, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        translate(translate_parameters(**changes))
