"""The results site: an overview, a page per label, figures and the numbers beside them.

In: a `SiteSource`. Out: a folder of static files that opens from disk, a web server or object
storage. Pages fetch nothing, run one script of their own, and pass a strict content-security
policy; labels and file names only ever appear as escaped text, never as paths.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from diffmining_core.report import figures
from diffmining_core.report.charts import LossChart, bin_chart, loss_chart
from diffmining_core.report.figures import Sprite, Tile
from diffmining_core.report.overlays import colour_bar
from diffmining_core.report.pictures import (
    LabelPictures,
    Place,
    save_sprite,
    strip_tiles,
    write_label_pictures,
)
from diffmining_core.report.source import (
    KINDS,
    SHOWN_PER_CLUSTER,
    SMALL_CLUSTER,
    Cluster,
    Losses,
    Patch,
    SiteSource,
    best_rows,
    label_clusters,
    label_patches,
    label_slugs,
)
from diffmining_core.signs import Sign

_STRIP_ALONE, _STRIP_BESIDE = 12, 6  # patches in a strip without and with one before finetuning
_SET_ASIDE_SHOWN = 100
_SIGNS_SHOWN = 2  # of one name; the others fold away
_AFTER, _BEFORE = "After finetuning", "Before finetuning"
_HERE = Path(__file__).parent
STATIC = _HERE / "static"
PREVIEW = "figures/generated.png"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_site(source: SiteSource, folder: Path) -> None:
    """Write the whole site into `folder`: `index.html` and all that it links to."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("labels", "figures", "data"):
        (folder / part).mkdir(exist_ok=True)
    shutil.copytree(STATIC, folder / "static", dirs_exist_ok=True)
    colour_bar().save(folder / "static" / "colour-bar.webp", "WEBP", lossless=True)
    slugs = label_slugs(source.labels)
    unit = _score_unit(source)
    sheets = _sheet_names(source)
    at_a_glance: list[tuple[str, list[list[Tile]]]] = []
    for label in source.labels:
        at_a_glance.append((label, _write_label(source, label, slugs, unit, folder)))
        if len(at_a_glance) == figures.LABELS_PER_SHEET or label == source.labels[-1]:
            sheet = figures.overview_figure(source.title, at_a_glance)
            sheet.save(folder / "figures" / sheets.pop(0))
            at_a_glance.clear()
    _write_numbers(source, folder / "data")
    _write_sign_pictures(source, folder / "signs")
    if source.preview:
        (folder / PREVIEW).write_bytes(source.preview[1])
    (folder / "index.html").write_text(render_index(source, ""), encoding="utf-8")


def render_index(source: SiteSource, prefix: str) -> str:
    """The overview as HTML, its links starting with `prefix` ("" or a folder ending in "/")."""
    slugs = label_slugs(source.labels)
    set_aside = source.set_aside.slice(0, _SET_ASIDE_SHOWN).to_pylist()
    return (
        environment()
        .get_template("index.html")
        .render(
            root=prefix,
            title=source.title,
            cards=[_card(source, label, slugs[label]) for label in source.labels],
            counts=_counts(source),
            truth=_truth(source.truth),
            signs=sign_groups(source, slugs),
            loss=_loss_chart(source.losses),
            bins=bin_chart(source.losses.first_bins, source.losses.last_bins)
            if source.losses
            else None,
            preview=(source.preview[0], PREVIEW) if source.preview else None,
            notes=[str(note) for note in source.facts.get("notes", [])],
            facts=fact_groups(source.facts),
            set_aside=set_aside,
            set_aside_count=source.set_aside.num_rows,
            sheets=_sheet_names(source),
            tables=_tables(source),
        )
    )


def fact_groups(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts as headed lists of name and text: first the plain ones, then each mapping's."""
    plain = {name: fact for name, fact in facts.items() if not isinstance(fact, Mapping)}
    plain.pop("notes", None)
    groups = [("Run", _fact_lines(plain))] if plain else []
    for name, fact in facts.items():
        if isinstance(fact, Mapping) and fact:
            groups.append((_heading(name), _fact_lines(fact)))
    return groups


@dataclass(frozen=True)
class SignGroup:
    """The signs of one name: what they say alike, and one entry for each that there is.

    advice: where all give the same; None where it stands with each.
    """

    name: str
    severity: str
    what: str
    advice: str | None
    entries: list[dict[str, Any]]

    @property
    def shown(self) -> list[dict[str, Any]]:
        """Those that are read without opening more."""
        return self.entries[:_SIGNS_SHOWN]

    @property
    def folded(self) -> list[dict[str, Any]]:
        """The others."""
        return self.entries[_SIGNS_SHOWN:]


def sign_groups(source: SiteSource, slugs: Mapping[str, str]) -> list[SignGroup]:
    """The signs by name, warnings first."""
    by_name: dict[str, list[Sign]] = {}
    for sign in sorted(source.signs, key=lambda sign: sign.severity != "warning"):
        by_name.setdefault(sign.name, []).append(sign)
    groups = []
    for name, signs in by_name.items():
        advice = signs[0].advice if len({sign.advice for sign in signs}) == 1 else None
        entries = [
            {
                "label": sign.label,
                "page": _label_page(slugs, sign.label),
                "evidence": sign.evidence.replace(" %", "\u00a0%"),  # on one line
                "advice": None if advice else sign.advice,
                "picture": _sign_picture_view(source, sign),
                "about": sign.about,
            }
            for sign in signs
        ]
        groups.append(SignGroup(name, signs[0].severity, signs[0].what, advice, entries))
    return groups


def _label_page(slugs: Mapping[str, str], label: str | None) -> str | None:
    """The page of a label from the site's top; None for the whole run."""
    return f"labels/{slugs[label]}.html" if label is not None and label in slugs else None


def _sign_picture_view(source: SiteSource, sign: Sign) -> dict[str, Any] | None:
    if not sign.picture or source.sign_picture is None:
        return None
    with Image.open(io.BytesIO(source.sign_picture(sign.picture))) as picture:
        width, height = picture.size
    return {"path": f"signs/{sign.picture}", "width": width, "height": height}


def _write_sign_pictures(source: SiteSource, folder: Path) -> None:
    pictures = [sign.picture for sign in source.signs if sign.picture]
    if not pictures or source.sign_picture is None:
        return
    folder.mkdir(exist_ok=True)
    for name in pictures:
        (folder / name).write_bytes(source.sign_picture(name))


def _loss_chart(losses: Losses | None) -> LossChart | None:
    if losses is None or not losses.training:
        return None
    return loss_chart(losses.training, losses.held_out, losses.seen)


@dataclass(frozen=True)
class ScoreUnit:
    """Typicality is small; the page writes it in units of a power of ten."""

    exponent: int

    @classmethod
    def of(cls, values: pa.ChunkedArray) -> ScoreUnit:
        """The power of ten of the largest of the values; ones for what is read well as it is."""
        largest = pc.max(pc.abs(values)).as_py() or 1.0
        exponent = math.floor(math.log10(largest))
        return cls(exponent if exponent < -1 or exponent > 2 else 0)

    def text(self, typicality: float) -> str:
        """The typicality in this unit, signed."""
        return f"{typicality / 10.0**self.exponent:+.2f}".replace("-", "−")

    @property
    def power(self) -> str:
        """The unit itself, such as "10⁻³"; nothing for ones."""
        return f"10{str(self.exponent).translate(_SUPERSCRIPTS)}" if self.exponent else ""

    @property
    def name(self) -> str:
        """The unit behind a number, such as "×10⁻³"; nothing for ones."""
        return f"×{self.power}" if self.exponent else ""


def _score_unit(source: SiteSource) -> ScoreUnit:
    """One unit for all pages, from the typicality of all patches."""
    return ScoreUnit.of(source.selection["typicality"])


def _write_label(
    source: SiteSource, label: str, slugs: Mapping[str, str], unit: ScoreUnit, folder: Path
) -> list[list[Tile]]:
    """Write a label's page, pictures and figures; return its patches at a glance."""
    slug = slugs[label]
    own_folder = folder / "labels" / slug
    own_folder.mkdir(exist_ok=True)
    clusters = label_clusters(source, label)
    glance = best_rows(source, label, figures.COVER_ROWS, figures.COVER_COLUMNS)
    strips, tiles = _strips(source, label)
    patches = [patch for columns in strips.values() for row in columns.values() for patch in row]
    patches += [patch for cluster in clusters for patch in cluster.patches]
    patches += [patch for row in glance for patch in row]
    pictures = write_label_pictures(source, label, slug, patches, tiles, folder)

    def tiles_of(row: Sequence[Patch]) -> list[Tile]:
        return [tiles[patch.place] for patch in row]

    sprite = figures.sprite(list(tiles.values()))
    save_sprite(sprite.image, own_folder / "patches.webp")
    if glance:
        save_sprite(figures.cover([tiles_of(row) for row in glance]), own_folder / "cover.webp")
    figure_names = _write_figures(
        folder / "figures",
        slug,
        [tiles_of(cluster.patches) for cluster in clusters if not cluster.is_small],
        {
            column: {kind: tiles_of(row[: figures.FIGURE_COLUMNS]) for kind, row in rows.items()}
            for column, rows in strips.items()
        },
    )
    view = _PatchView(unit, sprite, list(tiles), list(pictures.images))
    page = (
        environment()
        .get_template("label.html")
        .render(
            root="../",
            title=source.title,
            label=label,
            slug=slug,
            neighbours=_neighbours(source.labels, label, slugs),
            patch_count=source.selection.filter(_is_highest_of(source, label)).num_rows,
            unit=unit,
            sprite=view.sprite_facts(),
            strips=_strip_views(strips, view),
            columns=list(strips),
            clusters=_cluster_views(clusters, view, _purity(source, label)),
            small_cluster=SMALL_CLUSTER,
            shown_per_cluster=SHOWN_PER_CLUSTER,
            page_data=_page_data(label, pictures, unit),
            figures=figure_names,
        )
    )
    (folder / "labels" / f"{slug}.html").write_text(page, encoding="utf-8")
    return [tiles_of(row) for row in glance]


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


def _write_figures(
    folder: Path,
    slug: str,
    clusters: Sequence[Sequence[Tile]],
    strips: Mapping[str, Mapping[str, Sequence[Tile]]],
) -> dict[str, str]:
    """Write the label's figures; {what it shows: file name}."""
    drawn: dict[str, tuple[str, Image.Image]] = {
        "Strips": (f"{slug}-strips.png", figures.strips_figure(strips))
    }
    if clusters:
        drawn["Clusters"] = (f"{slug}-clusters.png", figures.cluster_figure(clusters))
    for name, picture in drawn.values():
        picture.save(folder / name)
    return {what: name for what, (name, _) in drawn.items()}


class _PatchView:
    """Turns a patch into what its place in the page needs."""

    def __init__(
        self, unit: ScoreUnit, sprite: Sprite, places: Sequence[Place], image_ids: Sequence[str]
    ) -> None:
        self.unit = unit
        self.sprite = sprite
        self.tile_index = {place: index for index, place in enumerate(places)}
        self.image_index = {image_id: index for index, image_id in enumerate(image_ids)}

    def row(self, name: str, patches: Sequence[Patch]) -> dict[str, Any]:
        """A row with its name and patches."""
        return {"name": name, "patches": [self._patch(patch) for patch in patches]}

    def sprite_facts(self) -> dict[str, int]:
        """Size of the sprite and of a patch in it, px."""
        width, height = self.sprite.image.size
        return {"width": width, "height": height, "tile": self.sprite.tile}

    def _patch(self, patch: Patch) -> dict[str, Any]:
        x, y = self.sprite.corner(self.tile_index[patch.place])
        return {
            "x": x,
            "y": y,
            "image": self.image_index[patch.image_id],
            "box": f"{patch.y} {patch.x} {patch.size}",
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
    clusters: Sequence[Cluster], view: _PatchView, purity: Sequence[float]
) -> list[dict[str, Any]]:
    largest = max((abs(cluster.median_typicality) for cluster in clusters), default=0) or 1.0
    return [
        {
            **view.row(f"Cluster {cluster.rank + 1}", cluster.patches),
            "number": cluster.rank + 1,
            "members": cluster.members,
            "median": view.unit.text(cluster.median_typicality),
            "share": round(100 * max(cluster.median_typicality, 0) / largest, 1),
            "purity": purity[cluster.rank] if cluster.rank < len(purity) else None,
            "is_small": cluster.is_small,
        }
        for cluster in clusters
    ]


def _page_data(label: str, pictures: LabelPictures, unit: ScoreUnit) -> dict[str, Any]:
    """What the script needs to show an image: paths from the label's page, sizes in px."""
    return {
        "label": label,
        "unit": unit.name,
        "scale": unit.text(pictures.scale).lstrip("+"),
        "images": [
            {
                "id": image.image_id,
                "name": image.name,
                "width": image.width,
                "height": image.height,
                "source": f"../{image.source}",
                "overlay": f"../{image.overlay}",
                "before": f"../{image.overlay_before}" if image.overlay_before else None,
            }
            for image in pictures.images.values()
        ],
    }


def _card(source: SiteSource, label: str, slug: str) -> dict[str, Any]:
    """A label's entry in the overview."""
    glance = best_rows(source, label, figures.COVER_ROWS, figures.COVER_COLUMNS)
    width, height = figures.cover_size(glance)
    return {
        "label": label,
        "page": f"labels/{slug}.html",
        "cover": f"labels/{slug}/cover.webp" if glance else None,
        "cover_width": width,
        "cover_height": height,
        "clusters": pc.sum(pc.equal(source.cluster_summary["label"], label)).as_py() or 0,
        "patches": pc.sum(_is_highest_of(source, label)).as_py() or 0,
        "purity": next(iter(_purity(source, label)), None),
    }


def _is_highest_of(source: SiteSource, label: str) -> Any:
    return pc.and_(
        pc.equal(source.selection["label"], label), pc.equal(source.selection["kind"], "highest")
    )


def _purity(source: SiteSource, label: str) -> list[float]:
    """Share of each top cluster's members that show one planted element; empty without truth."""
    return list((source.truth or {}).get("cluster_purity", {}).get(label, []))


def _neighbours(
    labels: Sequence[str], label: str, slugs: Mapping[str, str]
) -> list[tuple[str, str] | None]:
    """(label, page) before and after this one in the overview."""
    at = list(labels).index(label)
    sides = [labels[at - 1] if at else None, labels[at + 1] if at + 1 < len(labels) else None]
    return [(side, f"{slugs[side]}.html") if side is not None else None for side in sides]


def _counts(source: SiteSource) -> dict[str, int]:
    return {
        "labels": len(source.labels),
        "images": source.images,
        "clusters": source.cluster_summary.num_rows,
        "patches": pc.sum(pc.equal(source.selection["kind"], "highest")).as_py() or 0,
    }


def _truth(truth: Mapping[str, Any] | None) -> dict[str, list[tuple[str, float]]] | None:
    """The measured shares as named bars, in the order they are read."""
    if not truth:
        return None
    precision, hits = truth.get("average_precision", {}), truth.get("hits", {})
    names = {"after": "After finetuning", "before": "Before finetuning", "base_rate": "By chance"}
    return {
        "precision": [(names[key], precision[key]) for key in names if key in precision],
        "hits": [(kind.capitalize(), hits[kind]) for kind in KINDS if kind in hits],
    }


def _sheet_names(source: SiteSource) -> list[str]:
    sheets = -(-len(source.labels) // figures.LABELS_PER_SHEET)
    return ["overview.png", *(f"overview-{number}.png" for number in range(2, sheets + 1))][:sheets]


def _tables(source: SiteSource) -> dict[str, Any]:
    """The tables beside the pages, by file name."""
    tables = {
        "selection": source.selection,
        "clusters": source.clusters,
        "cluster_summary": source.cluster_summary,
        "set_aside": source.set_aside,
    }
    if source.before is not None:
        tables["before"] = source.before
    return {f"{name}.parquet": table for name, table in tables.items()}


def _write_numbers(source: SiteSource, folder: Path) -> None:
    for name, table in _tables(source).items():
        pq.write_table(table, folder / name, compression="zstd")
    slugs = label_slugs(source.labels)
    summary = {
        "title": source.title,
        "labels": [_card(source, label, slugs[label]) for label in source.labels],
        "counts": _counts(source),
        "facts": source.facts,
        "truth": source.truth,
        "losses": asdict(source.losses) if source.losses else None,
        "signs": [sign.as_json() for sign in source.signs],
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, default=_plain)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: object) -> Any:
    """JSON for the NumPy scalars and arrays that facts may hold; anything else as its text."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _fact_lines(facts: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, fact in facts.items():
        words = f"{above}{str(name).replace('_', ' ')}"
        if isinstance(fact, Mapping):
            lines += _fact_lines(fact, f"{words} · ")
        else:
            lines.append((words, _fact_text(fact)))
    return lines


def _fact_text(fact: Any) -> str:
    match fact:
        case bool():
            return "yes" if fact else "no"
        case None:
            return "–"
        case "":
            return "(empty)"
        case int() | np.integer():
            return f"{int(fact):,}"
        case float() | np.floating():
            return f"{float(fact):,.4g}"
        case list() | tuple():
            return ", ".join(_fact_text(one) for one in fact) or "–"
        case _:
            return str(fact)


def _heading(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def environment() -> Environment:
    """The templates of all pages, which escape what they are given."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment
