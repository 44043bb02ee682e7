"""The pages of the studies of clusters, predictability and generated images."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from drawn_site import HOSTILE
from PIL import Image

from diffmining_core.evaluation.predictability import Predicted
from diffmining_core.report.study_clusters import (
    HDBSCAN,
    KMEANS,
    MERGED,
    ClusterStudy,
    Quality,
    Way,
    clusters_page,
)
from diffmining_core.report.study_generated import (
    GeneratedNumbers,
    GeneratedStudy,
    generated_page,
)
from diffmining_core.report.study_page import NUMBERS, StudyPage, write_study_page
from diffmining_core.report.study_predictability import (
    COLOURS,
    FEATURES,
    PredictabilityStudy,
    predictability_page,
)

LABELS = ["barn", *HOSTILE[:2]]
TILE = np.full((10, 10, 3), 128, np.uint8)
FACTS = {"notes": ["An old model."], "dataset": {"folder": HOSTILE[1]}}


def tiles(_label: str) -> dict[str, list[np.ndarray]]:
    """One row has none, as where there are fewer clusters."""
    return {"first": [TILE] * 8, "second": []}


def clusters(known: bool) -> StudyPage:
    ways = [Way(KMEANS, 4), Way(KMEANS, 8), Way(MERGED, 4), Way(MERGED, 8), Way(HDBSCAN, 6)]
    shape = {"clusters": 4.0, "left_out": 0.1, "close": 0.0, "silhouette": -0.05}
    kinds = {"mixed": 0.5, "duplicate": 0.25, "found": 2.0, "purity": 0.8, "v_measure": 0.6}
    measured = {**shape, **kinds} if known else shape
    qualities = [
        Quality(way, {label: {**measured, "clusters": 3.0 + place} for place, label in
                      enumerate(LABELS)})
        for way in ways
    ]  # fmt: skip
    return clusters_page(ClusterStudy("Clusters", qualities, LABELS, tiles, FACTS))


def told(accuracy: float) -> Predicted:
    return Predicted(accuracy, 0.01, 1 / 3, dict.fromkeys(LABELS, accuracy))


def predictability() -> StudyPage:
    kinds = {"highest": told(0.9), "random": told(0.5), "lowest": told(0.3)}
    return predictability_page(
        PredictabilityStudy("Told", {FEATURES: kinds, COLOURS: kinds}, 200, LABELS, tiles, FACTS)
    )


def generated() -> StudyPage:
    numbers = [
        GeneratedNumbers("real", None, 1000, 0.01, 0.1, told(0.6)),
        GeneratedNumbers("guidance 1", 1.0, 50, 0.02, 0.2, told(0.7)),
        GeneratedNumbers("guidance 7.5", 7.5, 50, 0.03, 0.3, told(0.8)),
    ]
    return generated_page(GeneratedStudy("Generated", numbers, LABELS, tiles, FACTS))


@pytest.mark.parametrize(
    "page", [clusters(True), clusters(False), predictability(), generated()],
    ids=["clusters", "clusters of unknown kind", "predictability", "generated"],
)  # fmt: skip
def test_a_page_has_all_that_it_links_to(page: StudyPage, tmp_path: Path) -> None:
    write_study_page(page, tmp_path)
    html = (tmp_path / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len(set(linked)) >= len(LABELS) + 3
    assert all((tmp_path / name).is_file() for name in linked)
    assert "<script>" not in html
    assert "An old model." in html
    stored = json.loads((tmp_path / NUMBERS).read_text())
    assert len(stored["table"]["rows"]) == len(page.tables[0].rows)


def test_ways_to_cluster_are_means_over_labels_and_kinds_only_where_known() -> None:
    known, unknown = clusters(True), clusters(False)
    columns = known.tables[0].columns
    assert "V-measure" in columns
    assert "V-measure" not in unknown.tables[0].columns
    row = dict(zip(columns, known.tables[0].rows[1], strict=True))
    assert row["way"] == "k-means of 8"
    assert row["clusters"] == "4.0"
    assert row["mixed"] == "50 %"
    assert row["silhouette"] == "-0.05"
    by_name = {chart.name: chart for chart in known.charts}
    assert by_name["v-measure"].lines.keys() == {"k-means", "merged"}
    assert list(by_name["v-measure"].at) == [4, 8]
    assert [chart.name for chart in unknown.charts] == ["silhouette"]


def test_a_row_that_no_label_has_anything_in_is_left_out_of_the_figure(tmp_path: Path) -> None:
    write_study_page(clusters(True), tmp_path)
    with Image.open(tmp_path / "figures" / "barn.png") as figure:
        assert figure.height == 96  # one row of patches


def test_generated_images_are_held_against_the_real_ones() -> None:
    page = generated()
    told_chart = next(chart for chart in page.charts if chart.name == "told")
    assert told_chart.lines == {"generated": [0.7, 0.8], "real": [0.6, 0.6]}
    assert list(told_chart.at) == [1.0, 7.5]
    assert page.tables[0].rows[0][:3] == ["real", "1,000", "0.1000"]


def test_each_kind_of_patches_is_told_by_features_and_by_colours() -> None:
    page = predictability()
    assert [row[:2] for row in page.tables[0].rows[:2]] == [
        ["highest, the model’s features", "90.0 %"],
        ["random, the model’s features", "50.0 %"],
    ]
    assert len(page.tables[0].rows) == 6
    assert [row[0] for row in page.tables[1].rows] == LABELS
