"""Nights with drawn patches and hostile labels: what the tests and the browser's look at."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from drawn_site import HOSTILE

from diffmining_core.report.digest import (
    NIGHT_FORMAT,
    Digest,
    LabelChanges,
    NightRow,
    ShownCluster,
    Work,
    markdown_strip,
    render_night,
    render_nights,
    write_pictures,
)
from diffmining_core.report.environment import STATIC
from diffmining_core.report.source import label_slugs

LABELS = ["barn", "tower", *HOSTILE, "](javascript:alert(1))", "| a | `b` |"]
FIRST = datetime(2026, 11, 18, 2)


def night_name(number: int) -> str:
    return (FIRST + timedelta(days=number)).strftime(NIGHT_FORMAT)


def drawn_digest(
    folder: Path, labels: Sequence[str] = LABELS, night: int = 2, patches: int = 12
) -> Digest:
    """A night on which every label has a cluster that entered, one that left and one that moved."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(night)
    tiles = [
        [rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(patches)] for _ in labels
    ]
    sprite, corners = write_pictures(tiles, folder)
    slugs = label_slugs(labels)
    return Digest(
        night=night_name(night),
        previous=night_name(night - 1),
        title="Drawn discs & <b>nothing</b> else",
        measured=True,
        shards=1804,
        images=1_804_321,
        labels=len(labels),
        new_shards=2,
        new_images=1204,
        gone_images=3,
        relabelled=1,
        new_labels=tuple(labels[-2:]),
        gone_labels=("<i>gone</i>",),
        set_aside=((f"/x/<script>alert(1)</script>{labels[-1]}.png", "truncated: it ends early"),),
        set_aside_count=1,
        model="kept",
        changes=tuple(
            LabelChanges(
                label=label,
                page=slugs[label],
                page_before=slugs[label],
                entered=(0,),
                left=(3,),
                moved=((2, 1),),
            )
            for label in labels
        ),
        shown=tuple(
            ShownCluster(label=label, rank=0, page=slugs[label], members=40, corners=tuple(places))
            for label, places in zip(labels, corners, strict=True)
        ),
        sprite=sprite,
        work=Work(gpu_seconds=4464, cpu_seconds=0, price=2.5, currency="EUR"),
        report="report/now/attempt",
        report_before="report/before/attempt",
    )


def strips(folder: Path) -> list[bytes]:
    """The small pictures that `write_pictures` left for Markdown."""
    names = [markdown_strip(number) for number in range(len(LABELS))]
    return [(folder / name).read_bytes() for name in names if (folder / name).exists()]


def quiet(digest: Digest) -> Digest:
    """A night like it with nothing new."""
    return replace(
        digest,
        measured=False,
        new_shards=0,
        new_images=0,
        gone_images=0,
        relabelled=0,
        new_labels=(),
        gone_labels=(),
        set_aside=(),
        set_aside_count=0,
        changes=(),
        shown=(),
        sprite=None,
        work=Work(gpu_seconds=0, cpu_seconds=0, price=2.5, currency="EUR"),
    )


def write_nights(root: Path, rows: Sequence[NightRow] = ()) -> Path:
    """The pages of three nights, the second quiet, and of all nights; returns their folder."""
    pages = root / "nights"
    shutil.copytree(STATIC, pages / "static")
    told = {}
    for number in range(3):
        unit = f"night/{number}/attempt"
        digest = drawn_digest(root / unit, night=number)
        digest = quiet(digest) if number == 1 else digest
        following = night_name(number + 1) if number < 2 else None
        (pages / digest.night).mkdir()
        page = render_night(digest if number else replace(digest, previous=None), unit, following)
        (pages / digest.night / "index.html").write_text(page, encoding="utf-8")
        told[unit] = digest.row()
    told |= {f"night/{row.night}/attempt": row for row in rows}
    text = render_nights("Drawn discs & <b>nothing</b> else", told)
    (pages / "index.html").write_text(text, encoding="utf-8")
    (root / "index.html").write_text("<title>results</title>")
    for report in ("before", "now"):
        for slug in label_slugs(LABELS).values():
            page_file = root / f"report/{report}/attempt/labels/{slug}.html"
            page_file.parent.mkdir(parents=True, exist_ok=True)
            page_file.write_text("<title>label</title>")
    return pages
