"""The page of a study: how truth moves as finetuning goes on, in a chart, a table and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffmining_core.report import layouts
from diffmining_core.report.charts import LineChart, line_chart
from diffmining_core.report.environment import STATIC, environment
from diffmining_core.report.figures import Tile
from diffmining_core.report.layouts import Figure
from diffmining_core.report.page import fact_groups
from diffmining_core.report.source import KINDS, label_slugs

OVERVIEW_LABELS, OVERVIEW_TILES = 3, 5


@dataclass(frozen=True)
class StudyPoint:
    """The truth of mining with the model after `step` steps; all numbers are shares of 1.

    `hits` are the shares of patches that hit, by kind; `precision_by_label` is empty where the
    truth is not told apart by label.
    """

    step: int
    average_precision: float
    base_rate: float
    hits: Mapping[str, float]
    precision_by_label: Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """What the page says and shows; `tiles` are each label's highest patches by step."""

    title: str
    points: Sequence[StudyPoint]
    tiles: Mapping[str, Mapping[int, Sequence[Tile]]]
    facts: Mapping[str, Any]


def write_study(study: Study, folder: Path) -> None:
    """Write `index.html` with its figures, and the numbers as `study.json`."""
    shutil.copytree(STATIC, folder / "static")
    (folder / "figures").mkdir()
    slugs = label_slugs(list(study.tiles))
    for label, by_step in study.tiles.items():
        _strips({label: by_step}, None).save(folder / "figures" / f"{slugs[label]}.png")
    first = dict(list(study.tiles.items())[:OVERVIEW_LABELS])
    _strips(first, OVERVIEW_TILES).save(folder / "figures" / "overview.png")
    numbers = {"points": [asdict(point) for point in study.points], "facts": dict(study.facts)}
    (folder / "study.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (folder / "index.html").write_text(render_study(study, ""), encoding="utf-8")


def render_study(study: Study, prefix: str) -> str:
    """The page as HTML, its links starting with `prefix` ("" or a folder ending in "/")."""
    slugs = label_slugs(list(study.tiles))
    return (
        environment()
        .get_template("study.html")
        .render(
            root=prefix,
            title=study.title,
            points=study.points,
            precision=_chart(study, "average precision"),
            hits=_chart(study, "hits"),
            kinds=_kinds(study),
            labels=sorted(study.points[0].precision_by_label),
            pictures=[(label, f"figures/{slugs[label]}.png") for label in study.tiles],
            facts=fact_groups(study.facts),
        )
    )


def _kinds(study: Study) -> list[str]:
    return [kind for kind in KINDS if kind in study.points[0].hits]


def _chart(study: Study, what: str) -> LineChart:
    steps = [point.step for point in study.points]
    if what == "hits":
        lines = {kind: [point.hits[kind] for point in study.points] for kind in _kinds(study)}
    else:
        lines = {
            "typicality": [point.average_precision for point in study.points],
            "by chance": [point.base_rate for point in study.points],
        }
    return line_chart(steps, lines)


def _strips(tiles: Mapping[str, Mapping[int, Sequence[Tile]]], count: int | None) -> Figure:
    return layouts.strips_figure(
        {
            label: {f"step {step}": row[:count] for step, row in by_step.items()}
            for label, by_step in tiles.items()
        }
    )
