"""The page of a localisation: scores by finding, in a table, a strip plot and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.localization.findings import (
    all_findings,
    examples,
    findings,
    of_label,
    of_side,
    sides,
)
from diffmining_core.report.charts import StripPlot, strip_plot
from diffmining_core.report.environment import STATIC, environment
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.outlines import outlined
from diffmining_core.report.overlays import label_scale, overlay, smoothed
from diffmining_core.report.page import fact_groups
from diffmining_core.report.pictures import save_webp
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.report.source import label_slugs

SMOOTHING = 1 / 16
"""Sigma of the blur of the maps that are shown, of the shorter side: the paper's 32 px of 512."""

NUMBERS, SCORES = "localization.json", "scores.parquet"

_PICTURE_SIDE = 480  # px, the longer side of a picture, twice what a page shows
_QUALITY = 82


@dataclass(frozen=True)
class Seen:
    """What is shown of an image: uint8 pixels [h, w, 3], mask [h, w], and the map of each side."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    maps: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Localization:
    """What the page says; `scores` is a table of SCORE_SCHEMA.

    shown: how the table shows the addresses of images. look: (image_id, label) -> what is shown of
    that image; asked for one label at a time.
    """

    title: str
    scores: pa.Table
    facts: Mapping[str, Any]
    shown: ShownAddresses
    look: Callable[[str, str], Seen]


def write_localization(localization: Localization, folder: Path) -> None:
    """Write `index.html` with its pictures, the numbers, and the scores of every image."""
    shutil.copytree(STATIC, folder / "static")
    (folder / "pictures").mkdir()
    for label, slug in _slugs(localization.scores).items():
        _write_pictures(localization, label, folder / "pictures" / slug)
    pq.write_table(localization.shown.table(localization.scores), folder / SCORES)
    (folder / NUMBERS).write_text(json.dumps(numbers(localization), indent=2) + "\n")
    (folder / "index.html").write_text(render_localization(localization, ""), encoding="utf-8")


def numbers(localization: Localization) -> dict[str, Any]:
    """The table of the page: each finding, all together, and how they were come by."""
    scores = localization.scores
    return {
        "sides": sides(scores),
        "findings": [asdict(finding) for finding in findings(scores)],
        "all": asdict(all_findings(scores)),
        "facts": dict(localization.facts),
    }


def render_localization(localization: Localization, prefix: str) -> str:
    """The page as HTML, its links starting with `prefix` ("" or a folder ending in "/")."""
    scores = localization.scores
    return (
        environment()
        .get_template("localization.html")
        .render(
            root=prefix,
            title=localization.title,
            sides=sides(scores),
            findings=[*findings(scores), all_findings(scores)],
            plot=_plot(scores),
            shown=[
                {"label": label, "rows": _shown(scores, label, slug)}
                for label, slug in _slugs(scores).items()
            ],
            notes=[str(note) for note in localization.facts.get("notes", [])],
            facts=fact_groups(localization.facts),
            numbers=NUMBERS,
            scores=SCORES,
        )
    )


def markdown(numbers: Mapping[str, Any], page: str) -> str:
    """The numbers as a table for the Prefect UI; labels of any letters are text in it."""
    sides = numbers["sides"]
    head = ["label", "images", "by chance", *(f"average precision {side}" for side in sides)]
    rows = [
        [
            markdown_text(finding["label"] or "all"),
            f"{finding['images']:,}",
            f"{finding['chance']['mean']:.3f}",
            *(_spread(finding["average_precision"][side]) for side in sides),
        ]
        for finding in [*numbers["findings"], numbers["all"]]
    ]
    table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, "", f"Page: {markdown_text(page, 1000)}"])


def _spread(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.3f} ± {one['std']:.3f}"


def _slugs(scores: pa.Table) -> dict[str, str]:
    labels = sorted(scores["label"].unique().to_pylist())
    slugs = label_slugs(labels)
    return {label: slugs[label] for label in labels}


def _plot(scores: pa.Table) -> StripPlot:
    values = {
        label: {
            side: of_side(of_label(scores, label), side)["average_precision"].to_pylist()
            for side in sides(scores)
        }
        for label in _slugs(scores)
    }
    chance = {label: all_findings(of_label(scores, label)).chance.mean for label in values}
    return strip_plot(values, chance)


def _shown(scores: pa.Table, label: str, slug: str) -> list[dict[str, Any]]:
    """The pictures of a label: how each image was chosen, its file name, its scores by side."""
    mine = of_label(scores, label)
    rows = mine.to_pylist()
    return [
        {
            "name": name,
            "image_name": PurePosixPath(row["uri"]).name,
            "pictures": [f"pictures/{picture}" for picture in _names(scores, slug, name)],
            "precision": {
                one["side"]: one["average_precision"]
                for one in rows
                if one["image_id"] == row["image_id"]
            },
        }
        for name, row in examples(mine).items()
    ]


def _names(scores: pa.Table, slug: str, name: str) -> list[str]:
    """The files of an image's pictures: itself, and with the map of each side."""
    return [f"{slug}-{name}-{place}.webp" for place in range(1 + len(sides(scores)))]


def _write_pictures(localization: Localization, label: str, stem: Path) -> None:
    """The maps of a label in one scale for each side: a score sees only how they rank pixels."""
    chosen = examples(of_label(localization.scores, label))
    seen = {name: localization.look(row["image_id"], label) for name, row in chosen.items()}
    maps = {
        side: {
            name: smoothed(image.maps[side], SMOOTHING * min(image.maps[side].shape))
            for name, image in seen.items()
        }
        for side in sides(localization.scores)
    }
    scales = {side: label_scale(of_side.values()) for side, of_side in maps.items()}
    for name, image in seen.items():
        photo = _enlarged(Image.fromarray(image.pixels))
        overlaid = (overlay(of_side[name], scales[side]) for side, of_side in maps.items())
        pictures = [photo, *(_laid_over(photo, one) for one in overlaid)]
        files = _names(localization.scores, stem.name, name)
        for file, picture in zip(files, pictures, strict=True):
            save_webp(outlined(picture, image.mask), stem.with_name(file), quality=_QUALITY)


def _enlarged(photo: Image.Image) -> Image.Image:
    factor = _PICTURE_SIDE / max(photo.size)
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    return photo.resize(size, Image.Resampling.BICUBIC)


def _laid_over(photo: Image.Image, colours: Image.Image) -> Image.Image:
    fitted = colours.resize(photo.size, Image.Resampling.BILINEAR)
    return Image.alpha_composite(photo.convert("RGBA"), fitted).convert("RGB")
