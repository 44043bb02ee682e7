"""The page of a comparison: which way finds what, at what cost, in tables, curves and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffmining_core.report.figures import Tile
from diffmining_core.report.study_page import Chart, StudyPage, Table

NOTHING = "–"
"""In a table, where there is no such number."""


@dataclass(frozen=True)
class Growth:
    """What finding took on so many images, and the share of the patches found that hit."""

    images: int
    seconds: float
    hits: float | None


@dataclass(frozen=True)
class MethodNumbers:
    """What one way of mining came to; None for what it has not, or what is not known.

    hits: share of its patches that hit a known place of their label. average_precision: of its maps
    per pixel. purity: of each label's best clusters, as shares of the members that show one and the
    same planted element. Seconds: to train, once; to find, on parts of the dataset of which the
    last is all of it; to cluster.
    """

    name: str
    hits: float | None
    average_precision: float | None
    purity: Mapping[str, Sequence[float]] | None
    training_seconds: float
    growth: Sequence[Growth]
    clustering_seconds: float

    @property
    def best_purity(self) -> float | None:
        """Mean over the labels of their best cluster's purity."""
        if not self.purity:
            return None
        return _mean([of_label[0] for of_label in self.purity.values()])

    @property
    def mean_purity(self) -> float | None:
        """Mean over the labels of the mean over their best clusters."""
        if not self.purity:
            return None
        return _mean([_mean(of_label) for of_label in self.purity.values()])

    @property
    def seconds_per_1000(self) -> float | None:
        """What 1000 further images cost, by the two largest parts; None for a single part.

        0 where the smaller part took longer, as happens with what is too fast to measure.
        """
        if len(self.growth) < 2:
            return None
        before, whole = self.growth[-2:]
        more = (whole.seconds - before.seconds) / (whole.images - before.images)
        return max(0.0, 1000 * more)


@dataclass(frozen=True)
class Comparison:
    """All that is compared; base_rate: of average precision by chance. tiles as in `StudyPage`."""

    title: str
    methods: Sequence[MethodNumbers]
    base_rate: float | None
    labels: Sequence[str]
    tiles: Callable[[str], Mapping[str, Sequence[Tile]]]
    facts: Mapping[str, Any]


def comparison_page(comparison: Comparison) -> StudyPage:
    """The page of a comparison."""
    methods = comparison.methods
    table = comparison_table(comparison)
    numbers = {
        "methods": [
            asdict(method)
            | {name: getattr(method, name) for name in ("best_purity", "mean_purity")}
            | {"seconds_per_1000": method.seconds_per_1000}
            for method in methods
        ],
        "base_rate": comparison.base_rate,
        "table": asdict(table),
    }
    images = [part.images for part in methods[0].growth]
    charts = [
        Chart(
            "seconds",
            "Seconds to find",
            "patches on parts of the dataset and on all of it, without training",
            "images",
            images,
            {method.name: [part.seconds for part in method.growth] for method in methods},
        )
    ]
    hits = {
        method.name: [part.hits for part in method.growth if part.hits is not None]
        for method in methods
    }
    if all(len(of_method) == len(images) for of_method in hits.values()):
        words = "share of each label's highest patches on a known place"
        charts.insert(0, Chart("hits", "Patches that hit", words, "images", images, hits))
    return StudyPage(
        title=comparison.title,
        lead="The same images, patch size and number of patches, found by several methods: by "
        "typicality of a finetuned diffusion model, by other methods, and at random.",
        tables=[table, _growth_table(methods)],
        labels=comparison.labels,
        tiles=comparison.tiles,
        numbers=numbers,
        facts=comparison.facts,
        charts=charts if len(images) > 1 else (),
        pictures_title="The best patches of each method",
    )


def comparison_table(comparison: Comparison) -> Table:
    """One row for each way."""
    chance = (
        f" By chance it is {comparison.base_rate:.3f}." if comparison.base_rate is not None else ""
    )
    return Table(
        columns=[
            "",
            "hits",
            "precision",
            "best cluster",
            "five best",
            "train, s",
            "find, s",
            "cluster, s",
            "1000 more, s",
        ],
        rows=[
            [
                method.name,
                _percent(method.hits),
                NOTHING if (ap := method.average_precision) is None else f"{ap:.3f}",
                _percent(method.best_purity),
                _percent(method.mean_purity),
                _seconds(method.training_seconds or None),
                _seconds(method.growth[-1].seconds),
                _seconds(method.clustering_seconds or None),
                _seconds(method.seconds_per_1000),
            ]
            for method in comparison.methods
        ],
        words="Hits: share of the patches that are on a known place of their label. Precision: the "
        f"average precision per pixel, of methods that have maps.{chance} Best cluster and five "
        "best: the share of a cluster’s members that show one and the same planted element, mean "
        "over the labels. Seconds are those of the machine that made the results, to train, to "
        "find patches and to cluster them; what finding costs with 1000 images more follows from "
        "the two largest parts of the dataset.",
    )


def _growth_table(methods: Sequence[MethodNumbers]) -> Table:
    parts = methods[0].growth
    return Table(
        columns=["seconds to find", *(f"{part.images:,} images" for part in parts)],
        rows=[[m.name, *(_seconds(part.seconds) for part in m.growth)] for m in methods],
        words="The first shards of the dataset, whose images are mixed, and then all of them.",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.0%}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f}" if round(seconds, 1) < 10 else f"{seconds:,.0f}"
