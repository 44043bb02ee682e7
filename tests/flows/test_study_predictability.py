"""The study of predictability, run for real on a mined root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffmining_core.store.ledger import read_manifests, read_table
from diffmining_core.store.roots import open_root
from flows.parameters import MineParameters, PredictabilityStudyParameters
from flows.study.predictability import study_of_predictability
from tasks.features import feature_matrix

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_patches_of_each_kind_are_seen_without_their_label(
    parameters: Callable[..., MineParameters], root: Path, forwards: Counter[str]
) -> None:
    given = parameters(root).model_dump(exclude_unset=True)
    asked = PredictabilityStudyParameters(**given, patches=8)
    summary = study_of_predictability(asked)
    for seen in ("features", "colours"):
        assert summary[seen].keys() == {"highest", "random", "lowest"}
        for one in summary[seen].values():
            assert one["by_label"].keys() == {"Almara", "Borvik", "Cendria", "Dorrava"}
            assert one["chance"] == 0.25
            assert 0 <= one["accuracy"] <= 1
    assert "Labels told from patches" in (root / "study-predictability.html").read_text()

    opened = open_root(str(root))
    made = [m for m in read_manifests(opened, "features") if "unlabelled" in m.parameters]
    assert Counter(m.parameters["kind"] for m in made) == {
        "highest": 4,
        "random": 4,
        "lowest": 4,
    }
    assert {m.counts["patches"] for m in made} == {8}
    tables = {
        (m.parameters.get("kind"), m.parameters["label"]): read_table(opened, m, "features.parquet")
        for m in read_manifests(opened, "features")
    }
    labelled, unlabelled = tables[None, "Almara"], tables["highest", "Almara"]
    assert labelled["image_id"].to_pylist()[:8] == unlabelled["image_id"].to_pylist()
    assert not np.allclose(feature_matrix(labelled)[:8], feature_matrix(unlabelled))

    before = forwards["images"]
    assert study_of_predictability(asked)["features"] == summary["features"]
    assert forwards["images"] == before
