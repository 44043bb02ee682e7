"""The studies of timesteps, noise and patch sizes, run for real on a mined root."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from flows.parameters import (
    MinedStudyParameters,
    MineParameters,
    NoiseStudyParameters,
    PatchSizeStudyParameters,
    TimestepStudyParameters,
)
from flows.study.sides import study_noise, study_patch_sizes, study_timesteps

pytestmark = pytest.mark.usefixtures("prefect_api")

IMAGES = 16


@pytest.fixture
def study_of(
    parameters: Callable[..., MineParameters], root: Path
) -> Callable[..., MinedStudyParameters]:
    """Parameters of a study at the mined root, which has the model and the maps as mined."""

    def make(kind: type[MinedStudyParameters], **changes: Any) -> Any:
        given = parameters(root).model_dump(exclude_unset=True)
        return kind(**{**given, **changes})

    return make


def test_each_range_of_timesteps_is_measured_and_the_mined_one_is_there_already(
    study_of: Callable[..., Any], forwards: Counter[str], root: Path
) -> None:
    asked = study_of(TimestepStudyParameters, bins=2)
    summary = study_timesteps(asked)
    assert forwards["images"] == 2 * 2 * 2 * IMAGES  # ranges, draws, prompts
    assert [side["at"] for side in summary["sides"]] == [400, 250, 750]
    assert summary["sides"][0]["name"] == "as mined"
    assert [(pair["first"], pair["second"]) for pair in summary["pairs"]] == [(1, 0), (2, 0)]
    assert len({side["average_precision"] for side in summary["sides"]}) == 3
    ranges = [m.parameters["t_range"] for m in read_manifests(open_root(str(root)), "typicality")]
    assert [0.0, 0.5] in ranges
    assert [0.5, 1.0] in ranges
    assert "Timesteps of mining streets" in (root / "study-timesteps.html").read_text()

    before = forwards["images"]
    again = study_timesteps(asked)
    assert again["sides"] == summary["sides"]
    assert forwards["images"] == before


def test_without_a_known_answer_likeness_is_measured(
    study_of: Callable[..., Any], dataset: Path, tmp_path: Path
) -> None:
    unknown = shutil.copytree(dataset, tmp_path / "unknown")
    (unknown / "truth.parquet").unlink()
    asked = study_of(
        TimestepStudyParameters, bins=2, dataset=str(unknown), root=str(tmp_path / "other")
    )
    summary = study_timesteps(asked)
    assert all(side["average_precision"] is None for side in summary["sides"])
    assert all(-1 <= pair["ranks"] <= 1 for pair in summary["pairs"])
    assert summary["facts"]["dataset"]["known answer"] == "none"


def test_seeds_differ_by_their_draws_alone_and_each_group_has_its_pairs(
    study_of: Callable[..., Any], forwards: Counter[str], root: Path
) -> None:
    summary = study_noise(study_of(NoiseStudyParameters, seeds=2, shards=1))
    # Of six sides that with free draws and the run's own seed is there already.
    assert forwards["images"] == 5 * 2 * 2 * 4
    assert [(pair["first"], pair["second"]) for pair in summary["pairs"]] == [
        (0, 1), (2, 3), (4, 5),
    ]  # fmt: skip
    groups = [side["group"] for side in summary["sides"]]
    assert groups == [name for name in dict.fromkeys(groups) for _ in range(2)]
    made = [manifest.parameters for manifest in read_manifests(open_root(str(root)), "typicality")]
    assert {parameters["seed"] for parameters in made} == {42}
    new = [parameters for parameters in made if "draws_seed" in parameters]
    assert sorted((one.get("fixed", ""), one["draws_seed"]) for one in new) == [
        ("", 43), ("noise", 42), ("noise", 43), ("timestep", 42), ("timestep", 43),
    ]  # fmt: skip
    assert (root / "study-noise.html").exists()


def test_sizes_are_cut_from_the_maps_that_are_there(
    study_of: Callable[..., Any], forwards: Counter[str], root: Path
) -> None:
    summary = study_patch_sizes(study_of(PatchSizeStudyParameters, sizes=(24,)))
    assert forwards["images"] == 0
    assert [side["at"] for side in summary["sides"]] == [12, 24]
    assert [(pair["first"], pair["second"]) for pair in summary["pairs"]] == [(1, 0)]
    small, large = summary["sides"]
    assert small["average_precision"] == large["average_precision"]
    assert small["highest"] > large["highest"]
    assert (root / "study-patch-sizes.html").exists()


def test_sizes_are_around_the_one_that_is_mined_and_fit_the_image(
    study_of: Callable[..., Any],
) -> None:
    asked = study_of(PatchSizeStudyParameters)
    assert asked.sides(64) == [9, 12, 18, 24]  # half of 12 is too small for anything
    assert asked.sides(512) == [32, 48, 64, 96, 128]
    with pytest.raises(InputError, match="sizes should be from 8"):
        study_of(PatchSizeStudyParameters, sizes=(12, 65)).sides(64)


def test_parts_of_the_timesteps_join_without_a_gap(study_of: Callable[..., Any]) -> None:
    ranges = study_of(TimestepStudyParameters).ranges()
    assert ranges[0] == (0.0, 0.1)
    assert ranges[2] == (0.2, 0.3)
    assert [high for _, high in ranges[:-1]] == [low for low, _ in ranges[1:]]
    assert ranges[-1][1] == 1
