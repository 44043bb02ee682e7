"""The study of clusters, run for real on a mined root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from flows.mine import mine
from flows.parameters import ClusterStudyParameters, MineParameters
from flows.study.clusters import study_of_clusters

pytestmark = pytest.mark.usefixtures("prefect_api")

Make = Callable[..., MineParameters]


@pytest.fixture
def study_parameters(parameters: Make, root: Path) -> Callable[..., ClusterStudyParameters]:
    """Parameters of a study at the mined root."""

    def make(**changes: Any) -> ClusterStudyParameters:
        given = parameters(root).model_dump(exclude_unset=True)
        return ClusterStudyParameters(**{**given, **changes})

    return make


def test_the_patches_that_are_there_are_clustered_in_each_way(
    study_parameters: Callable[..., ClusterStudyParameters],
    forwards: Counter[str],
    root: Path,
) -> None:
    asked = study_parameters(ks=(3,), least_members=(3,))
    summary = study_of_clusters(asked)
    assert forwards["images"] == 0
    assert [(way["method"], way["number"]) for way in summary["ways"]] == [
        ("k-means", 2),
        ("k-means", 3),
        ("merged", 2),
        ("merged", 3),
        ("HDBSCAN", 3),
    ]
    for way in summary["ways"]:
        assert way["by_label"].keys() == {"Almara", "Borvik", "Cendria", "Dorrava"}
        mean = sum(row["v_measure"] for row in way["by_label"].values()) / 4
        assert way["mean"]["v_measure"] == pytest.approx(mean)
    page = (root / "study-clusters.html").read_text()
    assert "Duplicate clusters" in page
    assert "HDBSCAN of 3" in page
    assert study_of_clusters(asked)["computed"] == {}


def test_merged_groups_are_an_option_of_mining_with_units_of_their_own(
    parameters: Make, root: Path, forwards: Counter[str]
) -> None:
    before = {manifest.key for manifest in read_manifests(open_root(str(root)), "clusters")}
    summary = mine(parameters(root, finer=3))
    assert forwards["images"] == 0
    assert summary["computed"]["clusters"] == 4
    made = [
        manifest.parameters
        for manifest in read_manifests(open_root(str(root)), "clusters")
        if manifest.key not in before
    ]
    assert made == [{"k": 2, "finer": 3}] * 4
    assert mine(parameters(root))["computed"].get("clusters", 0) == 0


def test_numbers_of_clusters_are_around_the_one_that_is_mined(
    study_parameters: Callable[..., ClusterStudyParameters],
) -> None:
    assert study_parameters(k=32).numbers() == [8, 16, 32, 64]
    assert study_parameters(k=2).numbers() == [2, 4]
    assert study_parameters(k=8, ks=(5,)).numbers() == [5, 8]
    with pytest.raises(InputError, match="should be 2 or more, but 1 is not"):
        study_parameters(ks=(4, 1)).numbers()
