"""The pages of studies that mine the same way but for one thing, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffmining_core.report.charts import strip_plot
from diffmining_core.report.figures import Tile
from diffmining_core.report.source import KINDS
from diffmining_core.report.study_page import Chart, StudyPage, Table

TIMESTEPS, NOISE, PATCH_SIZES = "timesteps", "noise", "patch sizes"
"""What is studied side by side."""

AS_MINED = "as mined"
"""The side to which the others of a study are compared."""


@dataclass(frozen=True)
class SideNumbers:
    """What mining one side came to.

    at: its place on the axis. group: the sides it belongs to. typicality: mean over all places of
    all images; highest: mean of the highest patches. With a known answer also average precision,
    the share of places (base rate), and by kind the share of patches that hit.
    """

    name: str
    at: float
    group: str
    typicality: float
    highest: float
    average_precision: float | None = None
    base_rate: float | None = None
    hits: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Pair:
    """How alike two sides are: Spearman's correlation of their maps, mean over images, and the
    share of the first one's highest patches that the second has too."""

    first: int
    second: int
    ranks: float
    patches: float


@dataclass(frozen=True)
class Sides:
    """All that was measured of a study's sides; tiles as in `StudyPage`."""

    title: str
    sides: Sequence[SideNumbers]
    pairs: Sequence[Pair]
    labels: Sequence[str]
    tiles: Callable[[str], Mapping[str, Sequence[Tile]]]
    facts: Mapping[str, Any]

    @property
    def numbers(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "sides": [asdict(side) for side in self.sides],
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def sides_page(what: str, sides: Sides) -> StudyPage:
    """The page of a study of timesteps, noise or patch sizes."""
    return {TIMESTEPS: _timesteps, NOISE: _noise, PATCH_SIZES: _patch_sizes}[what](sides)


def _timesteps(sides: Sides) -> StudyPage:
    """The first side is the range that mining uses; the others are the bins."""
    mined, *bins = sides.sides
    to_mined = {pair.first: pair for pair in sides.pairs}
    alike = [to_mined[place] for place in range(1, len(sides.sides))]
    by, at = "timestep", [side.at for side in bins]
    charts = [
        *_truth_charts(bins, by, mined),
        Chart(
            "alike",
            "Alike",
            "to what is mined: ranks of the places of an image, and the highest patches",
            by,
            at,
            {"ranks": [pair.ranks for pair in alike], "patches": [pair.patches for pair in alike]},
        ),
        Chart(
            "typicality",
            "Typicality",
            "of the highest patches, and over all places",
            by,
            at,
            {
                "highest": [side.highest for side in bins],
                "all": [side.typicality for side in bins],
            },
        ),
    ]
    rows = [
        [*_cells(mined), "–", "–"],
        *(
            [*_cells(side), _share(pair.ranks), _percent(pair.patches)]
            for side, pair in zip(bins, alike, strict=True)
        ),
    ]
    return StudyPage(
        title=sides.title,
        lead="The same images and model, with typicality averaged over one narrow range of "
        "timesteps at a time: late steps, near 1000, see almost pure noise, early ones fine "
        "texture.",
        tables=[
            Table(
                ["timesteps", *_columns(mined), "ranks alike", "same patches"],
                rows,
                f"{_words(mined)} Alike are each range’s maps and highest patches to those of the "
                "range that is mined.",
            )
        ],
        labels=sides.labels,
        tiles=sides.tiles,
        numbers=sides.numbers,
        facts=sides.facts,
        charts=charts,
        pictures_title="The highest patches by timesteps",
    )


def _noise(sides: Sides) -> StudyPage:
    """Groups of sides that differ by the seed of their draws alone."""
    groups = list(dict.fromkeys(side.group for side in sides.sides))
    of_group = {name: [side for side in sides.sides if side.group == name] for name in groups}
    pairs = {
        name: [pair for pair in sides.pairs if sides.sides[pair.first].group == name]
        for name in groups
    }
    rows = []
    for name, group in of_group.items():
        row = [name, _spread([pair.ranks for pair in pairs[name]])]
        row.append(_spread([pair.patches for pair in pairs[name]]))
        row.append(_spread([side.highest for side in group], 4))
        if group[0].average_precision is not None:
            row.append(_spread([side.average_precision or 0.0 for side in group]))
            row.append(_spread([(side.hits or {}).get("highest", 0.0) for side in group]))
        rows.append(row)
    known = sides.sides[0].average_precision is not None
    columns = ["draws", "ranks alike", "same patches", "typicality of the highest"]
    values = {
        "ranks of two seeds alike": {
            name: [max(pair.ranks, 0.0) for pair in pairs[name]] for name in groups
        },
    }
    chance = {"ranks of two seeds alike": 0.0}
    if known:
        columns += ["average precision", "highest hit"]
        precision = "average precision of each seed"
        values[precision] = {
            name: [side.average_precision or 0.0 for side in group]
            for name, group in of_group.items()
        }
        chance[precision] = sides.sides[0].base_rate or 0.0
    each = [[side.name, *_cells(side)[1:]] for side in sides.sides]
    return StudyPage(
        title=sides.title,
        lead="The same images and model under draws of several seeds: with noise and timestep both "
        "drawn anew, with one noise for all draws, and with one timestep for all draws. What two "
        "seeds do not agree on is chance.",
        tables=[
            Table(
                columns,
                rows,
                "Mean ± standard deviation: of likeness over the pairs of seeds, of the others "
                "over the seeds. Likeness of ranks is Spearman’s correlation of two maps, of "
                "patches the share of the highest that are the same.",
            ),
            Table(["draws", *_columns(sides.sides[0])], each, _words(sides.sides[0])),
        ],
        labels=sides.labels,
        tiles=sides.tiles,
        numbers=sides.numbers,
        facts=sides.facts,
        dots=strip_plot(values, chance),
        dots_words="A dot for each seed or pair of seeds, the mean as a bar, chance as a dashed "
        "line, on a scale of square roots.",
        pictures_title="The highest patches by seed",
    )


def _patch_sizes(sides: Sides) -> StudyPage:
    """One side for each size, all from the same maps; pairs are with the size that is mined."""
    to_mined = {pair.first: pair.patches for pair in sides.pairs}
    by, at = "side of a patch in pixels", [side.at for side in sides.sides]
    rows = [
        [*_cells(side), AS_MINED if place not in to_mined else _percent(to_mined[place])]
        for place, side in enumerate(sides.sides)
    ]
    return StudyPage(
        title=sides.title,
        lead="The same typicality maps, cut into patches of several sizes.",
        tables=[
            Table(
                ["size", *_columns(sides.sides[0]), "same patches"],
                rows,
                f"{_words(sides.sides[0])} The same are the highest patches of which two thirds "
                "are in one of the size that is mined, or hold that of it. Larger patches hit more "
                "by chance, as the random ones tell.",
            )
        ],
        labels=sides.labels,
        tiles=sides.tiles,
        numbers=sides.numbers,
        facts=sides.facts,
        charts=[
            *_hits_chart(sides.sides, by),
            Chart(
                "typicality",
                "Typicality",
                "of the highest patches, and over all places",
                by,
                at,
                {
                    "highest": [side.highest for side in sides.sides],
                    "all": [side.typicality for side in sides.sides],
                },
            ),
        ],
        pictures_title="The highest patches by size",
    )


def _truth_charts(sides: Sequence[SideNumbers], by: str, mined: SideNumbers) -> list[Chart]:
    """Precision and hits over the sides, with those of what is mined; none if nothing is known."""
    if mined.average_precision is None:
        return []
    precision = Chart(
        "precision",
        "Average precision",
        "of typicality per pixel against the known places",
        by,
        [side.at for side in sides],
        {
            "by range": [side.average_precision or 0.0 for side in sides],
            AS_MINED: [mined.average_precision] * len(sides),
            "by chance": [mined.base_rate or 0.0] * len(sides),
        },
    )
    return [precision, *_hits_chart(sides, by)]


def _hits_chart(sides: Sequence[SideNumbers], by: str) -> list[Chart]:
    if not all(side.hits for side in sides):
        return []
    lines = {kind: [(side.hits or {}).get(kind, 0.0) for side in sides] for kind in KINDS}
    words = "share of mined patches on a known place, highest, random and lowest"
    return [Chart("hits", "Patches that hit", words, by, [side.at for side in sides], lines)]


def _columns(side: SideNumbers) -> list[str]:
    known = ["average precision", *(f"{kind} hit" for kind in KINDS)]
    return [*(known if side.hits else []), "typicality of the highest", "of all places"]


def _cells(side: SideNumbers) -> list[str]:
    """A row of the table: the name, and the numbers of `_columns`."""
    cells = [side.name]
    if side.hits:
        cells.append(_share(side.average_precision or 0.0))
        cells += [_percent(side.hits.get(kind, 0.0)) for kind in KINDS]
    return [*cells, f"{side.highest:.4f}", f"{side.typicality:.4f}"]


def _words(side: SideNumbers) -> str:
    if side.base_rate is None:
        return "Typicality is in units of noise variance."
    return f"By chance the average precision is {side.base_rate:.3f}."


def _share(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
