"""The results site: an overview, a page per label, figures and the numbers beside them.

In: a `SiteSource`. Out: a folder of static files that opens from disk, a web server or object
storage. Pages fetch nothing, run one script of their own, and pass a strict content-security
policy; labels and file names only ever appear as escaped text, never as paths.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.report import figures, layouts
from diffmining_core.report.charts import LossChart, bin_chart, loss_chart
from diffmining_core.report.environment import STATIC, environment
from diffmining_core.report.figures import Tile
from diffmining_core.report.label_page import Site, patch_count, purity, write_label
from diffmining_core.report.likeness import ClusterLikeness, cluster_likeness
from diffmining_core.report.overlays import colour_bar
from diffmining_core.report.pictures import picture_sizes
from diffmining_core.report.score_unit import ScoreUnit
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.report.source import (
    KINDS,
    Losses,
    SiteSource,
    best_rows,
    label_slugs,
)
from diffmining_core.signs import Sign

_SET_ASIDE_SHOWN = 100
_SIGNS_SHOWN = 2  # of one name; the others fold away
PREVIEW = "figures/generated.png"
MODEL_CARD = "data/model-card.md"
_SEARCH_FROM = 9  # labels that are not seen at one glance


def write_site(
    source: SiteSource, folder: Path, advance: Callable[[], object] = lambda: None
) -> None:
    """Write the whole site into `folder`: `index.html` and all that it links to.

    advance is called after each label.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("labels", "figures", "data"):
        (folder / part).mkdir(exist_ok=True)
    shutil.copytree(STATIC, folder / "static", dirs_exist_ok=True)
    colour_bar().save(folder / "static" / "colour-bar.webp", "WEBP", lossless=True)
    site = Site(
        source=source,
        folder=folder,
        slugs=label_slugs(source.labels),
        unit=ScoreUnit.of(source.selection["typicality"]),
        sizes=picture_sizes(len(source.labels)),
        alike=_cluster_likeness(source),
    )
    sheets = _sheet_names(source)
    at_a_glance: list[tuple[str, list[list[Tile]]]] = []
    for label in source.labels:
        at_a_glance.append((label, write_label(site, label)))
        if len(at_a_glance) == figures.LABELS_PER_SHEET or label == source.labels[-1]:
            if sheets:
                sheet = layouts.overview_figure(source.title, at_a_glance)
                sheet.save(folder / "figures" / sheets.pop(0))
            at_a_glance.clear()
        advance()
    _write_numbers(source, folder / "data")
    _write_sign_pictures(source, folder / "signs")
    if source.preview:
        (folder / PREVIEW).write_bytes(source.preview[1])
    if source.model_card:
        (folder / MODEL_CARD).write_bytes(source.model_card)
    (folder / "index.html").write_text(render_index(source, ""), encoding="utf-8")
    compare = (
        environment()
        .get_template("compare.html")
        .render(root="", title=source.title, labels=_label_links(source))
    )
    (folder / "compare.html").write_text(compare, encoding="utf-8")


def _cluster_likeness(source: SiteSource) -> ClusterLikeness | None:
    """Which clusters of all labels look alike, read one label at a time."""
    features_of = source.features
    if features_of is None:
        return None

    def labels() -> Iterator[tuple[str, list[int], NDArray[np.float32]]]:
        for label in source.labels:
            if (features := features_of(label)) is not None:
                rows = source.clusters.filter(pc.equal(source.clusters["label"], label))
                columns = (rows[name].to_pylist() for name in ("image_id", "y", "x"))
                yield label, rows["cluster"].to_pylist(), features.of(zip(*columns, strict=True))

    return cluster_likeness(labels())


def _label_links(source: SiteSource) -> list[tuple[str, str]]:
    """Each label and the file name of its page, without the suffix."""
    return list(label_slugs(source.labels).items())


def render_index(source: SiteSource, prefix: str) -> str:
    """The overview as HTML, its links starting with `prefix` ("" or a folder ending in "/")."""
    slugs = label_slugs(source.labels)
    set_aside = source.shown.table(source.set_aside.slice(0, _SET_ASIDE_SHOWN)).to_pylist()
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
            model_card=MODEL_CARD if source.model_card else None,
            set_aside=set_aside,
            set_aside_count=source.set_aside.num_rows,
            sheets=_sheet_names(source),
            tables=[*_tables(source), *(["images.parquet"] if source.ranking else [])],
            unit=ScoreUnit.of(source.selection["typicality"]),
            search=len(source.labels) >= _SEARCH_FROM,
        )
    )


def render_pages(pages: Sequence[tuple[str, str, str]]) -> str:
    """The overview's list of other pages: address, title and what each shows."""
    return environment().get_template("pages.html").render(pages=pages)


def render_facts(facts: Mapping[str, Any]) -> str:
    """More facts as the overview has them, each a mapping with a heading of its own."""
    return environment().get_template("fact_sections.html").render(facts=fact_groups(facts))


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
        "patches": patch_count(source, label),
        "images": image_count(source, label),
        "typicality": best_typicality(source, label),
        "purity": next(iter(purity(source, label)), None),
    }


def image_count(source: SiteSource, label: str) -> int | None:
    """The images measured under a label, None where they are not ranked."""
    if source.ranking is None:
        return None
    return len(of_label.typicality) if (of_label := source.ranking.of_label.get(label)) else 0


def best_typicality(source: SiteSource, label: str) -> float | None:
    """The median typicality of a label's first cluster, None where it has none."""
    summary = source.cluster_summary
    of_label = summary.filter(pc.equal(summary["label"], label))
    best: float | None = pc.max(of_label["median_typicality"]).as_py()
    return best


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
    if not picture_sizes(len(source.labels)).figures:
        return []
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
        pq.write_table(source.shown.table(table), folder / name, compression="zstd")
    if source.ranking:
        _write_images(source.ranking.table, folder / "images.parquet", source.shown)
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


def _write_images(table: Path, copy: Path, shown: ShownAddresses) -> None:
    """The table of all images with their addresses as they are shown, a row group at a time."""
    with (
        pq.ParquetFile(table) as parquet,
        pq.ParquetWriter(copy, parquet.schema_arrow, compression="zstd") as writer,
    ):
        for group in range(parquet.num_row_groups):
            writer.write_table(shown.table(parquet.read_row_group(group)))


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
