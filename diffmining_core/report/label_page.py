"""The page of one label: its strips, its ranked clusters, its whole images, and what they open to.

In: a `SiteSource` and a label. Out: `labels/SLUG.html` and the pictures that it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from diffmining_core.report import figures, layouts
from diffmining_core.report.charts import HistogramChart, histogram_chart
from diffmining_core.report.environment import environment
from diffmining_core.report.figures import Sprite, Tile
from diffmining_core.report.likeness import ClusterLikeness, most_alike
from diffmining_core.report.pictures import (
    LabelPictures,
    PictureSizes,
    Place,
    image_tiles,
    save_sprite,
    strip_tiles,
    write_label_pictures,
)
from diffmining_core.report.score_unit import ScoreUnit
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.report.source import (
    KINDS,
    SMALL_CLUSTER,
    Cluster,
    Patch,
    SiteSource,
    best_rows,
    label_clusters,
    label_patches,
)

_STRIP_ALONE, _STRIP_BESIDE = 12, 6  # patches in a strip without and with one before finetuning
_ALIKE_PATCHES = 6
_ALIKE_CLUSTERS = 3
_AFTER, _BEFORE = "After finetuning", "Before finetuning"


@dataclass(frozen=True)
class Site:
    """What the pages of all labels share.

    slugs: file name of each label's page, without its suffix. alike: None without features.
    """

    source: SiteSource
    folder: Path
    slugs: Mapping[str, str]
    unit: ScoreUnit
    sizes: PictureSizes
    alike: ClusterLikeness | None


def write_label(site: Site, label: str) -> list[list[Tile]]:
    """Write a label's page, pictures and figures; return its patches at a glance."""
    source, folder, slug = site.source, site.folder, site.slugs[label]
    own_folder = folder / "labels" / slug
    own_folder.mkdir(exist_ok=True)
    clusters = label_clusters(source, label, site.sizes.per_cluster)
    glance = best_rows(source, label, figures.COVER_ROWS, figures.COVER_COLUMNS)
    strips, tiles = _strips(source, label)
    ends = _image_ends(source, label)
    patches = [patch for columns in strips.values() for row in columns.values() for patch in row]
    patches += [patch for cluster in clusters for patch in cluster.patches]
    patches += [patch for row in [*ends.values(), *glance] for patch in row]
    pictures = write_label_pictures(source, label, slug, patches, tiles, folder, site.sizes)

    def tiles_of(row: Sequence[Patch]) -> list[Tile]:
        return [tiles[patch.place] for patch in row]

    sprite = figures.sprite(list(tiles.values()), site.sizes.tile)
    save_sprite(sprite.image, own_folder / "patches.webp", site.sizes.tile_quality)
    if glance:
        cover = figures.cover([tiles_of(row) for row in glance])
        save_sprite(cover, own_folder / "cover.webp", site.sizes.tile_quality)
    figure_names = {}
    if site.sizes.figures:
        figure_names = _write_figures(
            folder / "figures",
            slug,
            [tiles_of(cluster.patches) for cluster in clusters if not cluster.is_small],
            {
                column: {kind: tiles_of(row[: figures.FIGURE_COLUMNS]) for kind, row in kinds}
                for column, kinds in ((name, rows.items()) for name, rows in strips.items())
            },
        )
    view = _PatchView(site.unit, f"{slug}/patches.webp", sprite, list(tiles), pictures)
    page = (
        environment()
        .get_template("label.html")
        .render(
            root="../",
            title=source.title,
            label=label,
            slug=slug,
            neighbours=_neighbours(source.labels, label, site.slugs),
            patch_count=patch_count(source, label),
            unit=site.unit,
            strips=_strip_views(strips, view),
            columns=list(strips),
            clusters=_cluster_views(site, label, clusters, view),
            images=_images_view(site, label, ends, pictures),
            small_cluster=SMALL_CLUSTER,
            shown_per_cluster=site.sizes.per_cluster,
            page_data=_page_data(label, pictures, site.unit, site.source.shown),
            figures=figure_names,
        )
    )
    (folder / "labels" / f"{slug}.html").write_text(page, encoding="utf-8")
    return [tiles_of(row) for row in glance]


def patch_count(source: SiteSource, label: str) -> int:
    """The highest patches of a label."""
    of_label = pc.equal(source.selection["label"], label)
    highest = pc.equal(source.selection["kind"], "highest")
    return pc.sum(pc.and_(of_label, highest)).as_py() or 0


def purity(source: SiteSource, label: str) -> list[float]:
    """Share of each top cluster's members that show one planted element; empty without truth."""
    return list((source.truth or {}).get("cluster_purity", {}).get(label, []))


def _strips(
    source: SiteSource, label: str
) -> tuple[dict[str, dict[str, list[Patch]]], dict[Place, Tile]]:
    """Patches as {column: {kind: row}}, before finetuning first, and their pixels."""
    columns = {_AFTER: source.selection}
    if source.before is not None:
        columns = {_BEFORE: source.before, **columns}
    count = _STRIP_ALONE if len(columns) == 1 else _STRIP_BESIDE
    strips: dict[str, dict[str, list[Patch]]] = {}
    tiles: dict[Place, Tile] = {}
    for column, selection in columns.items():
        strips[column] = {}
        for kind in KINDS:
            shown = strip_tiles(source, label_patches(selection, label, kind), count)
            strips[column][kind.capitalize()] = list(shown)
            tiles.update({patch.place: tile for patch, tile in shown.items()})
    return strips, tiles


def _image_ends(source: SiteSource, label: str) -> dict[str, dict[Patch, Tile]]:
    """The most and the least typical whole images, with the middle of each."""
    of_label = source.ranking.of_label.get(label) if source.ranking else None
    if of_label is None:
        return {}
    ends = {"Most typical": of_label.highest, "Least typical": of_label.lowest}
    return {name: image_tiles(source, ranked) for name, ranked in ends.items()}


def _write_figures(
    folder: Path,
    slug: str,
    clusters: Sequence[Sequence[Tile]],
    strips: Mapping[str, Mapping[str, Sequence[Tile]]],
) -> dict[str, str]:
    """Write the label's figures; {what it shows: file name}."""
    drawn = {"Strips": (f"{slug}-strips.png", layouts.strips_figure(strips))}
    if clusters:
        drawn["Clusters"] = (f"{slug}-clusters.png", layouts.clusters_figure(clusters))
    for name, figure in drawn.values():
        figure.save(folder / name)
    return {what: name for what, (name, _) in drawn.items()}


class _PatchView:
    """Turns a patch into what its place in the page needs; `file` has the sprite of all places."""

    def __init__(
        self,
        unit: ScoreUnit,
        file: str,
        sprite: Sprite,
        places: Sequence[Place],
        pictures: LabelPictures,
    ) -> None:
        self.unit = unit
        self.file = file
        self.sprite = sprite
        self.tile_index = {place: index for index, place in enumerate(places)}
        self.image_index = {image_id: index for index, image_id in enumerate(pictures.images)}

    def row(self, name: str, patches: Sequence[Patch]) -> dict[str, Any]:
        """A row with its name, its patches, and the size of the sprite and of a patch in it, px."""
        width, height = self.sprite.image.size
        sprite = {"file": self.file, "width": width, "height": height, "tile": self.sprite.tile}
        return {
            "name": name,
            "patches": [self._patch(patch) for patch in patches],
            "sprite": sprite,
        }

    def _patch(self, patch: Patch) -> dict[str, Any]:
        x, y = self.sprite.corner(self.tile_index[patch.place])
        return {
            "x": x,
            "y": y,
            "image": self.image_index[patch.image_id],
            "box": "" if patch.is_image else f"{patch.y} {patch.x} {patch.size}",
            "score": self.unit.text(patch.typicality),
            "image_name": patch.image_name,
        }


def _strip_views(
    strips: Mapping[str, Mapping[str, Sequence[Patch]]], view: _PatchView
) -> list[dict[str, Any]]:
    """For each kind, its strips side by side."""
    first = next(iter(strips.values()))
    views = []
    for kind in first:
        rows = []
        for column, of_kind in strips.items():
            name = kind if len(strips) == 1 else f"{kind}, {column[0].lower()}{column[1:]}"
            rows.append({**view.row(name, of_kind[kind]), "column": column})
        views.append({"kind": kind, "rows": rows})
    return views


def _cluster_views(
    site: Site, label: str, clusters: Sequence[Cluster], view: _PatchView
) -> list[dict[str, Any]]:
    largest = max((abs(cluster.median_typicality) for cluster in clusters), default=0) or 1.0
    shares = purity(site.source, label)
    views = [
        {
            **view.row(f"Cluster {cluster.rank + 1}", cluster.patches),
            "number": cluster.rank + 1,
            "members": cluster.members,
            "median": view.unit.text(cluster.median_typicality),
            "spread": view.unit.size_text(cluster.spread),
            "spread_value": cluster.spread,
            "share": round(100 * max(cluster.median_typicality, 0) / largest, 1),
            "purity": shares[cluster.rank] if cluster.rank < len(shares) else None,
            "is_small": cluster.is_small,
            "alike": _alike_clusters(site, label, cluster.rank),
        }
        for cluster in clusters
    ]
    shown = [patch for cluster in clusters for patch in cluster.patches]
    in_page = (patch for of_cluster in views for patch in of_cluster["patches"])
    alike = _alike_patches(site.source, label, shown)
    for number, (patch, others) in enumerate(zip(in_page, alike, strict=True)):
        patch |= {"number": number, "alike": others}
    return views


def _alike_clusters(site: Site, label: str, cluster: int) -> list[dict[str, Any]]:
    """The clusters of other labels that look most like this one, each with its place."""
    if site.alike is None:
        return []
    return [
        {
            "label": other.label,
            "number": other.cluster + 1,
            "page": f"{site.slugs[other.label]}.html#cluster-{other.cluster + 1}",
        }
        for other in site.alike.elsewhere(label, cluster, _ALIKE_CLUSTERS)
    ]


def _alike_patches(source: SiteSource, label: str, shown: Sequence[Patch]) -> list[list[int]]:
    """For each patch that the clusters show, the numbers of those most like it; none at first."""
    features = source.features(label) if source.features else None
    if features is None or len(shown) < 2:
        return [[] for _ in shown]
    vectors = features.of((patch.image_id, patch.y, patch.x) for patch in shown)
    return [[int(other) for other in others] for others in most_alike(vectors, _ALIKE_PATCHES)]


def _images_view(
    site: Site, label: str, ends: Mapping[str, Mapping[Patch, Tile]], pictures: LabelPictures
) -> dict[str, Any] | None:
    """The whole images of a label: how their typicality is spread, and either end of it."""
    if not ends or site.source.ranking is None:
        return None
    slug = site.slugs[label]
    tiles = {patch.place: tile for of_end in ends.values() for patch, tile in of_end.items()}
    sprite = figures.sprite(list(tiles.values()))
    picture = site.folder / "labels" / slug / "images.webp"
    save_sprite(sprite.image, picture, site.sizes.tile_quality)
    view = _PatchView(site.unit, f"{slug}/images.webp", sprite, list(tiles), pictures)
    typicality = site.source.ranking.of_label[label].typicality
    chart: HistogramChart = histogram_chart(typicality.tolist(), 10.0**view.unit.exponent)
    return {
        "count": len(typicality),
        "median": view.unit.text(float(pc.quantile(typicality, 0.5)[0].as_py())),
        "positive": float((typicality > 0).mean()),
        "chart": chart,
        "rows": [view.row(f"{name} image", list(of_end)) for name, of_end in ends.items()],
        "names": list(ends),
    }


def _page_data(
    label: str, pictures: LabelPictures, unit: ScoreUnit, shown: ShownAddresses
) -> dict[str, Any]:
    """What the script needs to show an image: paths from the label's page, sizes in px."""
    return {
        "label": label,
        "unit": unit.name,
        "scale": unit.text(pictures.scale).lstrip("+"),
        "images": [
            {
                "id": image.image_id,
                "name": image.name,
                "path": shown.address(image.uri),
                "width": image.width,
                "height": image.height,
                "source": f"../{image.source}",
                "overlay": f"../{image.overlay}",
                "before": f"../{image.overlay_before}" if image.overlay_before else None,
            }
            for image in pictures.images.values()
        ],
    }


def _neighbours(
    labels: Sequence[str], label: str, slugs: Mapping[str, str]
) -> list[tuple[str, str] | None]:
    """(label, page) before and after this one in the overview."""
    at = list(labels).index(label)
    sides = [labels[at - 1] if at else None, labels[at + 1] if at + 1 < len(labels) else None]
    return [(side, f"{slugs[side]}.html") if side is not None else None for side in sides]
