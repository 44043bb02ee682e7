"""The page of a parallel dataset: rows of one element across all labels, and how its look moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffmining_core.clusters.joint import joint_summary
from diffmining_core.clusters.trend import Movement, mean_patch, movements
from diffmining_core.report.environment import STATIC, environment
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.figures import Tile
from diffmining_core.report.page import fact_groups
from diffmining_core.report.parallel_figures import FigureRow, Sheet, labels_figure
from diffmining_core.report.pictures import crop, save_sprite
from diffmining_core.report.score_unit import ScoreUnit
from diffmining_core.report.source import SMALL_CLUSTER, Patch

ROWS = 6
"""Members shown of a cluster, the nearest to its centroid first."""
MEAN_OF = 20
"""Members, the nearest, whose patches are averaged for the strip of a cluster."""
OVERVIEW = 8
"""Clusters in the figures over several, and at first in the table of colours."""

NUMBERS, SEQUENCES, TREND = "parallel.json", "sequences.parquet", "trend.parquet"


@dataclass(frozen=True)
class Parallel:
    """What the page says.

    labels: in the order of the columns. clusters: a table of JOINT_SCHEMA with a row or more.
    trend: one of TREND_SCHEMA. look: (image_id, own label, label) -> uint8 [h, w, 3], the
    model-size image of a source under a label, itself under its own; asked for one cluster after
    the other. truth: what `correspondence` found; None where nothing is known of the images.
    """

    title: str
    labels: Sequence[str]
    clusters: pa.Table
    trend: pa.Table
    facts: Mapping[str, Any]
    look: Callable[[str, str, str], NDArray[np.uint8]]
    truth: Mapping[str, Any] | None = None

    @cached_property
    def ranked(self) -> list[_Cluster]:
        """The clusters by rank."""
        moves = movements(self.trend)
        kinds = {one["cluster"]: one for one in (self.truth or {}).get("clusters", [])}
        return [
            _Cluster(
                rank=row["cluster"],
                members=row["members"],
                median=row["median_cotypicality"],
                nearest=_of_cluster(self.clusters, row["cluster"]).slice(0, MEAN_OF).to_pylist(),
                colours={
                    one["label"]: one for one in _of_cluster(self.trend, row["cluster"]).to_pylist()
                },
                movement=moves.get(row["cluster"]),
                kind=kinds.get(row["cluster"]),
            )
            for row in joint_summary(self.clusters).to_pylist()
        ]


@dataclass(frozen=True)
class _Cluster:
    """A joint cluster: `nearest` are rows of its nearest members, `colours` of its trend."""

    rank: int
    members: int
    median: float
    nearest: list[dict[str, Any]]
    colours: Mapping[str, dict[str, Any]]
    movement: Movement | None
    kind: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """Its file's name without the ending."""
        return f"cluster-{self.rank + 1:02d}"

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The members that have a row."""
        return self.nearest[:ROWS]

    @property
    def sheet(self) -> Sheet:
        """Where its tiles lie: the mean patches, then a row for each member shown."""
        columns = len(self.colours)
        return Sheet.of(self.nearest[0]["size"], 1 + len(self.shown), columns)


def write_parallel(parallel: Parallel, folder: Path) -> None:
    """Write `index.html` with its pictures and figures, the numbers, and the tables behind them."""
    shutil.copytree(STATIC, folder / "static")
    (folder / "clusters").mkdir()
    (folder / "figures").mkdir()
    nearest, means = [], []
    for cluster in parallel.ranked:
        mean, rows = _tiles(parallel, cluster)
        sheet = cluster.sheet.drawn([mean, *rows])
        save_sprite(sheet, folder / "clusters" / f"{cluster.name}.webp")
        figure = [
            FigureRow(f"from {member['label']}", tiles, _own(parallel, member))
            for member, tiles in zip(cluster.shown, rows, strict=True)
        ]
        strip = FigureRow("mean", mean, colours=_swatches(parallel, cluster))
        drawn = labels_figure(parallel.labels, [strip, *figure])
        drawn.save(folder / "figures" / f"{cluster.name}.png")
        if cluster.rank < OVERVIEW:
            number = f"Cluster {cluster.rank + 1}"
            nearest.append(FigureRow(number, rows[0], _own(parallel, cluster.shown[0])))
            means.append(FigureRow(number, mean, colours=strip.colours))
    labels_figure(parallel.labels, nearest).save(folder / "figures" / "overview.png")
    labels_figure(parallel.labels, means).save(folder / "figures" / "trends.png")
    pq.write_table(parallel.clusters, folder / SEQUENCES)
    pq.write_table(parallel.trend, folder / TREND)
    text = json.dumps(numbers(parallel), indent=2, ensure_ascii=False)
    (folder / NUMBERS).write_text(f"{text}\n", encoding="utf-8")
    (folder / "index.html").write_text(render_parallel(parallel, ""), encoding="utf-8")


def numbers(parallel: Parallel) -> dict[str, Any]:
    """The clusters with their colours under each label, the truth, and how they were come by."""
    return {
        "labels": list(parallel.labels),
        "sequences": parallel.clusters.num_rows,
        "clusters": [
            {
                "cluster": cluster.rank,
                "members": cluster.members,
                "median_cotypicality": cluster.median,
                "movement": asdict(cluster.movement) if cluster.movement else None,
                "colours": {
                    label: {name: cluster.colours[label][name] for name in _COLOUR}
                    for label in parallel.labels
                },
            }
            for cluster in parallel.ranked
        ],
        "truth": parallel.truth,
        "facts": dict(parallel.facts),
    }


_COLOUR = ("lightness", "a", "b", "srgb", "delta_e")


def render_parallel(parallel: Parallel, prefix: str) -> str:
    """The page as HTML, its links starting with `prefix` ("" or a folder ending in "/")."""
    unit = ScoreUnit.of(parallel.clusters["cotypicality"])
    return (
        environment()
        .get_template("parallel.html")
        .render(
            root=prefix,
            title=parallel.title,
            labels=parallel.labels,
            sequences=parallel.clusters.num_rows,
            unit=unit,
            clusters=[_view(parallel, cluster, unit) for cluster in parallel.ranked],
            small_cluster=SMALL_CLUSTER,
            rows=ROWS,
            mean_of=MEAN_OF,
            overview=OVERVIEW,
            truth=parallel.truth,
            notes=[str(note) for note in parallel.facts.get("notes", [])],
            facts=fact_groups(parallel.facts),
            data={
                "The numbers as JSON": NUMBERS,
                "the sequences as Parquet": SEQUENCES,
                "the colours as Parquet": TREND,
                "a figure of the first clusters": "figures/overview.png",
                "a figure of their trends": "figures/trends.png",
            },
        )
    )


def markdown(numbers: Mapping[str, Any], page: str) -> str:
    """The clusters as a table for the Prefect UI; labels of any letters are text in it."""
    truth = numbers["truth"]
    kinds = {one["cluster"]: one for one in truth["clusters"]} if truth else {}
    head = ["cluster", "sequences", "median co-typicality", "colour moves most"]
    table = [head + (["kind"] if truth else []), ["---:"] * 3 + ["---"] * (2 if truth else 1)]
    for cluster in numbers["clusters"]:
        move, kind = cluster["movement"], kinds.get(cluster["cluster"])
        row = [
            str(cluster["cluster"] + 1),
            f"{cluster['members']:,}",
            f"{cluster['median_cotypicality']:.3g}",
            f"{' to '.join(map(markdown_text, move['labels']))}, ΔE {move['delta_e']:.0f}"
            if move
            else "–",
        ]
        if kind:
            row.append(f"{markdown_text(kind['kind'] or 'none')} {100 * kind['purity']:.0f} %")
        table.append(row)
    lines = [f"| {' | '.join(row)} |" for row in table]
    if truth:
        lines += ["", f"One kind of element in {100 * truth['one_kind']:.0f} % of the clusters."]
    return "\n".join([*lines, "", f"Page: {markdown_text(page, 1000)}"])


def _view(parallel: Parallel, cluster: _Cluster, unit: ScoreUnit) -> dict[str, Any]:
    """What the page's template needs of a cluster."""
    sheet = cluster.sheet
    kind = cluster.kind
    return {
        "number": cluster.rank + 1,
        "is_small": cluster.members < SMALL_CLUSTER,
        "members": cluster.members,
        "median": unit.text(cluster.median),
        "kind": (kind["kind"], kind["purity"]) if kind else None,
        "movement": cluster.movement,
        "picture": f"clusters/{cluster.name}.webp",
        "figure": f"figures/{cluster.name}.png",
        "sheet": sheet,
        "mean_of": len(cluster.nearest),
        "strip": [
            {**cluster.colours[label], "corner": sheet.corner(0, column)}
            for column, label in enumerate(parallel.labels)
        ],
        "rows": [
            {
                "source": member["label"],
                "score": unit.text(member["cotypicality"]),
                "cells": [
                    {
                        "label": label,
                        "corner": sheet.corner(row, column),
                        "own": label in member["own"],
                        "score": unit.text(_typicality(member, label)),
                    }
                    for column, label in enumerate(parallel.labels)
                ],
            }
            for row, member in enumerate(cluster.shown, start=1)
        ],
    }


def _typicality(member: Mapping[str, Any], label: str) -> float:
    value: float = member["typicality"][member["labels"].index(label)]
    return value


def _of_cluster(table: pa.Table, rank: int) -> pa.Table:
    return table.filter(pc.equal(table["cluster"], rank))


def _own(parallel: Parallel, member: Mapping[str, Any]) -> list[int]:
    """The columns in which a member is the source image itself."""
    return [column for column, label in enumerate(parallel.labels) if label in member["own"]]


def _swatches(parallel: Parallel, cluster: _Cluster) -> list[str]:
    return [cluster.colours[label]["srgb"] for label in parallel.labels]


def _tiles(parallel: Parallel, cluster: _Cluster) -> tuple[list[Tile], list[list[Tile]]]:
    """A cluster's mean patch under each label, and the patches of the members shown."""
    mean, shown = [], []
    for label in parallel.labels:
        tiles = [
            crop(parallel.look(member["image_id"], member["label"], label), _patch(member))
            for member in cluster.nearest
        ]
        mean.append(mean_patch(tiles))
        shown.append([tile.copy() for tile in tiles[:ROWS]])  # lets go of the whole image
    return mean, [list(row) for row in zip(*shown, strict=True)]


def _patch(member: Mapping[str, Any]) -> Patch:
    image_id, y, x, size = (member[name] for name in ("image_id", "y", "x", "size"))
    return Patch(image_id, image_id, y, x, size, member["cotypicality"])
