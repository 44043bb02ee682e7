"""The page of a study of clusters: ways to cluster the same patches, and how good each is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffmining_core.report.figures import Tile
from diffmining_core.report.study_page import Chart, StudyPage, Table

KMEANS, MERGED, HDBSCAN = "k-means", "merged", "HDBSCAN"
METHODS = (KMEANS, MERGED, HDBSCAN)

_MEASURES = {
    "clusters": "clusters",
    "left_out": "in none",
    "mixed": "mixed",
    "duplicate": "duplicate",
    "found": "elements found",
    "purity": "purity",
    "v_measure": "V-measure",
    "close": "close together",
    "silhouette": "silhouette",
}
"""What is measured, as the table says it; those of a known answer only where there is one."""
_SHARES = ("left_out", "mixed", "duplicate", "purity", "close")
_COUNTS = ("clusters", "found")


@dataclass(frozen=True)
class Way:
    """One way to cluster: a method, and the number of clusters or least members asked of it."""

    method: str
    number: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.method} of {self.number}"


@dataclass(frozen=True)
class Quality:
    """What one way came to: each measure, by label and as their mean over labels."""

    way: Way
    by_label: Mapping[str, Mapping[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """Each label counts as much as any other."""
        rows = list(self.by_label.values())
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@dataclass(frozen=True)
class ClusterStudy:
    """All that was measured; tiles as in `StudyPage`, a row for each cluster that is shown."""

    title: str
    qualities: Sequence[Quality]
    labels: Sequence[str]
    tiles: Callable[[str], Mapping[str, Sequence[Tile]]]
    facts: Mapping[str, Any]


def clusters_page(study: ClusterStudy) -> StudyPage:
    """The page of a study of clusters."""
    measured = study.qualities[0].mean
    shown = [name for name in _MEASURES if name in measured]
    return StudyPage(
        title=study.title,
        lead="The highest patches of each label, clustered in several ways: k-means, k-means "
        "into more groups that are then merged, and HDBSCAN, which finds out how many clusters "
        "there are and leaves out what is nowhere dense.",
        tables=[
            Table(
                ["way", *(_MEASURES[name] for name in shown)],
                [
                    [quality.way.name, *(_text(name, quality.mean[name]) for name in shown)]
                    for quality in study.qualities
                ],
                _words("mixed" in measured),
            )
        ],
        labels=study.labels,
        tiles=study.tiles,
        numbers={
            "ways": [
                {
                    **asdict(quality.way),
                    "mean": quality.mean,
                    "by_label": {label: dict(row) for label, row in quality.by_label.items()},
                }
                for quality in study.qualities
            ]
        },
        facts=study.facts,
        charts=_charts(study.qualities),
        pictures_title="The first clusters of each way",
    )


def _charts(qualities: Sequence[Quality]) -> list[Chart]:
    """k-means and merging over the number of clusters that is asked of both."""
    of_method = {
        method: [quality for quality in qualities if quality.way.method == method]
        for method in (KMEANS, MERGED)
    }
    at = [quality.way.number for quality in of_method[KMEANS]]
    if len(at) < 2:
        return []
    wanted = {
        "v_measure": ("Clusters and kinds", "V-measure: 1 where each kind has one cluster"),
        "mixed": ("Mixed clusters", "share with less than 80 % of one kind"),
        "duplicate": ("Duplicate clusters", "share of a kind that has a cluster already"),
        "silhouette": ("Silhouette", "how tight clusters are for their distance"),
    }
    return [
        Chart(
            name.replace("_", "-"),
            title,
            words,
            "number of clusters asked for",
            at,
            {method: [one.mean[name] for one in found] for method, found in of_method.items()},
        )
        for name, (title, words) in wanted.items()
        if name in qualities[0].mean
    ]


def _text(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if name in _COUNTS else f"{value:.2f}"


def _words(known: bool) -> str:
    words = (
        "Means over labels. Clusters are those of at least 6 patches; all others are in none. "
        "Close together are clusters whose means are nearer than their members are to them. "
    )
    if known:
        words += (
            "Mixed are clusters with less than 80 % of one kind of planted element (or of "
            "nothing planted); duplicate those of a kind that has a cluster already; found are "
            "kinds of elements with a cluster of their own."
        )
    return words
