"""The page that studies share: curves, dots, tables, and strips of patches for each label."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffmining_core.report import layouts
from diffmining_core.report.charts import StripPlot, line_chart
from diffmining_core.report.environment import STATIC, environment
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.figures import Tile
from diffmining_core.report.layouts import Figure
from diffmining_core.report.page import fact_groups
from diffmining_core.report.source import label_slugs

NUMBERS = "study.json"
OVERVIEW_LABELS, OVERVIEW_TILES = 3, 5


@dataclass(frozen=True)
class Chart:
    """Named lines of numbers over the places `at`, which count `by` something."""

    name: str
    """Of its file, without the ending."""
    title: str
    words: str
    by: str
    at: Sequence[float]
    lines: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Table:
    """Rows of text below the names of the columns; the first cell of a row is its name."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: str


@dataclass(frozen=True)
class StudyPage:
    """What the page says and shows.

    tables: the one that says most comes first. tiles: label -> pixels of patches by the name of
    their row; asked for one label at a time. numbers: all that was measured, as JSON. facts: how
    it was made; the list under "notes" is shown first, each as a sentence.
    """

    title: str
    lead: str
    tables: Sequence[Table]
    labels: Sequence[str]
    tiles: Callable[[str], Mapping[str, Sequence[Tile]]]
    numbers: Mapping[str, Any]
    facts: Mapping[str, Any]
    charts: Sequence[Chart] = ()
    dots: StripPlot | None = None
    dots_words: str = ""
    pictures_title: str = "The highest patches"


def write_study_page(page: StudyPage, folder: Path) -> None:
    """Write `index.html` with its figures, and the numbers as `study.json`."""
    shutil.copytree(STATIC, folder / "static")
    (folder / "figures").mkdir()
    slugs = label_slugs(page.labels)
    first: dict[str, Mapping[str, Sequence[Tile]]] = {}
    for label in page.labels:
        rows = page.tiles(label)
        _strips({label: rows}, None).save(folder / "figures" / f"{slugs[label]}.png")
        if len(first) < OVERVIEW_LABELS:
            first[label] = rows
    if first:
        _strips(first, OVERVIEW_TILES).save(folder / "figures" / "overview.png")
    template = environment().get_template("chart.svg")
    for chart in page.charts:
        svg = template.render(
            lines=line_chart(chart.at, chart.lines), title=chart.title, by=chart.by
        )
        (folder / _file(chart)).write_text(svg, encoding="utf-8")
    numbers = {**page.numbers, "table": asdict(page.tables[0]), "facts": dict(page.facts)}
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=2) + "\n")
    (folder / "index.html").write_text(render_study_page(page, ""), encoding="utf-8")


def render_study_page(page: StudyPage, prefix: str) -> str:
    """The page as HTML, its links starting with `prefix` ("" or a folder ending in "/")."""
    slugs = label_slugs(page.labels)
    charts = [
        {
            "lines": line_chart(chart.at, chart.lines),
            "title": chart.title,
            "words": chart.words,
            "by": chart.by,
            "file": _file(chart),
        }
        for chart in page.charts
    ]
    return (
        environment()
        .get_template("study_page.html")
        .render(
            root=prefix,
            title=page.title,
            lead=page.lead,
            charts=charts,
            dots=page.dots,
            dots_words=page.dots_words,
            tables=page.tables,
            pictures=[(label, f"figures/{slugs[label]}.png") for label in page.labels],
            pictures_title=page.pictures_title,
            notes=[str(note) for note in page.facts.get("notes", [])],
            facts=fact_groups(page.facts),
            numbers=NUMBERS,
        )
    )


def markdown(table: Table, page: str) -> str:
    """A table of the page for the Prefect UI; names of any letters are text in it."""
    head = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)]]
    rows = [[markdown_text(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in [*head, *rows]]
    return "\n".join([*lines, "", f"Page: {markdown_text(page, 1000)}"])


def _file(chart: Chart) -> str:
    return f"figures/{chart.name}.svg"


def _strips(tiles: Mapping[str, Mapping[str, Sequence[Tile]]], count: int | None) -> Figure:
    """A column for each label; a row that no label has anything in is left out."""
    names = [
        name
        for name in next(iter(tiles.values()))
        if any(len(rows[name]) for rows in tiles.values())
    ]
    return layouts.strips_figure(
        {label: {name: rows[name][:count] for name in names} for label, rows in tiles.items()}
    )
