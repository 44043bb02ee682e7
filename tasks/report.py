"""The results page of one run, its figures and numbers, and the fixed names that lead to it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.clusters.kmeans import cluster_summary
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report import ALGO
from diffmining_core.report.page import render_index, write_site
from diffmining_core.report.source import SiteSource
from diffmining_core.store.ledger import Attempt, finished, read_bytes
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import typicality
from tasks.clusters import label_clusters
from tasks.finetune import loss_curve
from tasks.index import Shard, set_aside_rows
from tasks.selection import selected
from tasks.units import Done, fill, stage_task

STAGE = "report"
ROOT_PAGE = "root.html"
"""The overview as it stands at the root, with PLACE before its links."""
PLACE = "@PREFIX@/"
"""Stands for the folder of the unit's data, which differs when the same page is made again."""

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Results:
    """The published units that a page shows."""

    dataset: tuple[Shard, ...]
    images: int
    """How many were measured: the good ones of the dataset, less those set aside then."""
    size: int
    typicality: tuple[str, ...]
    selection: str
    clusters: tuple[tuple[str, str], ...]
    """(label, key)."""
    finetune: str | None
    compared: tuple[Shard, ...]
    """The shards also measured before finetuning, one for each key of `typicality_before`."""
    typicality_before: tuple[str, ...]
    selection_before: str | None


def report_unit(
    results: Results, facts: Mapping[str, Any], truth: Mapping[str, Any] | None
) -> Unit:
    """The unit of one page: the units it shows and the words it says about them."""
    inputs = (
        results.selection,
        *(key for _, key in results.clusters),
        results.finetune or "",
        results.selection_before or "",
        *(shard.key for shard in results.dataset),
    )
    return Unit(STAGE, ALGO, inputs, {"facts": dict(facts), "truth": truth, "size": results.size})


@stage_task(STAGE)
def report(
    root: str,
    title: str,
    results: Results,
    facts: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
) -> Done:
    """Draw and publish the page; `index.html` at the root then shows it."""
    opened = open_root(root)

    def produce(attempt: Attempt) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = site_source(opened, title, results, facts, truth)
            write_site(source, Path(folder))
            attempt.write_folder(Path(folder))
            attempt.write_bytes(ROOT_PAGE, render_index(source, PLACE).encode())

    return fill(root, report_unit(results, facts, truth), produce)


def publish_page(root: str, key: str) -> str:
    """Let `index.html` at the root show the report `key`; returns its URL."""
    opened = open_root(root)
    manifest = finished(opened, STAGE, key)
    page = read_bytes(opened, manifest, ROOT_PAGE)
    # With the quote before it: what a label says is escaped and holds none.
    linked = page.replace(f'"{PLACE}'.encode(), f'"{manifest.attempt}/'.encode())
    opened.write_bytes("index.html", linked)
    return opened.url_of("index.html")


def publish_summary(root: str, summary: Mapping[str, Any]) -> None:
    """Write the run's numbers to `summary.json` at the root."""
    open_root(root).write_bytes("summary.json", json.dumps(summary, indent=2).encode() + b"\n")


def summarised_report(root: str) -> str | None:
    """The key of the report whose numbers `summary.json` holds, None if there is none yet."""
    try:
        summary = json.loads(open_root(root).read_bytes("summary.json"))
    except FileNotFoundError:
        return None
    key: str | None = summary.get("report")
    return key


def site_source(
    root: Root,
    title: str,
    results: Results,
    facts: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
) -> SiteSource:
    """All that the page is drawn from, the maps only of images that it may show."""
    selection = selected(root, results.selection)
    before = selected(root, results.selection_before) if results.selection_before else None
    clusters = current_clusters(root, results)
    shown = selected_pairs([selection] if before is None else [selection, before])
    after_maps = maps_of(root, results.typicality, shown)
    before_maps = maps_of(root, results.typicality_before, shown)
    set_aside = list(set_aside_rows(root, results.dataset))
    set_aside += typicality.set_aside_images(root, results.dataset, results.typicality)
    return SiteSource(
        title=title,
        images=results.images,
        labels=sorted({label for shard in results.dataset for label, _ in shard.labels}),
        selection=selection,
        clusters=clusters,
        cluster_summary=cluster_summary(clusters),
        set_aside=pa.table(
            {
                "uri": pa.array([uri for uri, _ in set_aside], pa.string()),
                "reason": pa.array([reason for _, reason in set_aside], pa.string()),
            }
        ),
        load_pixels=lambda uri: load_pixels(uri, results.size),
        typicality=lambda image_id, label: after_maps[image_id, label],
        typicality_before=lambda image_id, label: before_maps.get((image_id, label)),
        facts=facts,
        before=before,
        truth=truth,
        loss_curve=loss_curve(root.url, results.finetune) if results.finetune else None,
    )


def current_clusters(root: Root, results: Results) -> pa.Table:
    """The clusters of all labels; units may be older than the place where the images are now."""
    selection = selected(root, results.selection)
    uris = dict(zip(selection["image_id"].to_pylist(), selection["uri"].to_pylist(), strict=True))
    clusters = pa.concat_tables(label_clusters(root, key) for _, key in results.clusters)
    return clusters.set_column(
        clusters.schema.get_field_index("uri"),
        "uri",
        pa.array([uris[image_id] for image_id in clusters["image_id"].to_pylist()], pa.string()),
    )


def selected_pairs(tables: Iterable[pa.Table]) -> set[tuple[str, str]]:
    """(image_id, label) of every patch in `tables`."""
    return {
        pair
        for table in tables
        for pair in zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    }


def maps_of(
    root: Root, keys: Sequence[str], wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], Map]:
    """The maps of the wanted (image_id, label) pairs, read unit by unit."""
    found: dict[tuple[str, str], Map] = {}
    for key in keys:
        manifest = finished(root, typicality.STAGE, key)
        maps = read_maps(root, manifest)
        for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True)):
            if pair in wanted:
                found[pair] = maps.map(i).copy()
    return found
