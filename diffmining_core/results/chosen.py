"""The figures of a run: the patches that its page shows, laid out as in the paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffmining_core.errors import InputError
from diffmining_core.images.ahead import in_order
from diffmining_core.report import figures, layouts
from diffmining_core.report.figures import Tile
from diffmining_core.report.layouts import Figure
from diffmining_core.report.pictures import crop, strip_tiles
from diffmining_core.report.source import (
    KINDS,
    SMALL_CLUSTER,
    Patch,
    SiteSource,
    best_rows,
    label_clusters,
    label_patches,
)

AFTER, BEFORE = "After finetuning", "Before finetuning"


def clusters_figure(source: SiteSource, label: str) -> Figure:
    """The most typical clusters of a label, a row each; InputError where all are small."""
    clusters = [one for one in label_clusters(source, label) if not one.is_small]
    if not clusters:
        raise InputError(
            f"{label!r} has no cluster of {SMALL_CLUSTER} members or more to draw; mine more "
            "images of it, or draw its strips"
        )
    rows = [one.patches[: figures.FIGURE_COLUMNS] for one in clusters[: figures.FIGURE_ROWS]]
    return layouts.clusters_figure(tiles_of(source, rows), label)


def strips_figure(source: SiteSource, label: str) -> Figure:
    """The highest, random and lowest patches of a label, before and after where both are there."""
    columns, shown = {AFTER: source.selection}, figures.FIGURE_COLUMNS
    if source.before is not None:
        columns = {BEFORE: source.before, **columns}
    strips = {
        heading: {
            kind.capitalize(): list(
                strip_tiles(source, label_patches(selection, label, kind), shown).values()
            )
            for kind in KINDS
        }
        for heading, selection in columns.items()
    }
    return layouts.strips_figure(strips, label)


def overview_figures(source: SiteSource) -> Iterator[Figure]:
    """All labels with the best of each, some to a figure."""
    for start in range(0, len(source.labels), figures.LABELS_PER_SHEET):
        labels = source.labels[start : start + figures.LABELS_PER_SHEET]
        rows = [best_rows(source, one, figures.COVER_ROWS, figures.COVER_COLUMNS) for one in labels]
        shown = [(label, tiles_of(source, of)) for label, of in zip(labels, rows, strict=True)]
        yield layouts.overview_figure(source.title, shown)


def tiles_of(source: SiteSource, rows: Sequence[Sequence[Patch]]) -> list[list[Tile]]:
    """What patches show, each image read once."""
    by_image: dict[str, list[Patch]] = {}
    for patch in (patch for row in rows for patch in row):
        by_image.setdefault(patch.uri, []).append(patch)
    tiles = {
        patch.place: crop(pixels, patch).copy()
        for uri, pixels in in_order(source.load_pixels, by_image)
        for patch in by_image[uri]
    }
    return [[tiles[patch.place] for patch in row] for row in rows]
