"""The results page of one run, its figures and numbers, and the fixed names that lead to it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffmining_core.clusters.kmeans import cluster_summary
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report import ALGO
from diffmining_core.report.page import render_facts, render_index, render_pages, write_site
from diffmining_core.report.ranking import rank_images
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.report.source import Losses, PatchFeatures, SiteSource, shown_pairs
from diffmining_core.report.study_page import StudyPage, render_study_page, write_study_page
from diffmining_core.results.references import RESULTS, Results, summarised_report
from diffmining_core.results.spool import Pair, SpooledMaps
from diffmining_core.store.ledger import Attempt, finished, read_bytes, read_json, read_manifest
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import clusters, features, finetune, typicality
from tasks.features import feature_matrix, label_features
from tasks.index import set_aside_rows
from tasks.progress import Progress
from tasks.results import current_clusters
from tasks.selection import image_typicality, selected
from tasks.signs import found_signs, sign_picture
from tasks.units import Done, fill, stage_task

STAGE = "report"
INDEX = "index.html"
ROOT_PAGE = "root.html"
"""The overview as it stands at the root, with PLACE before its links."""
PLACE = "@PREFIX@/"
"""Stands for the folder of the unit's data, which differs when the same page is made again."""
COST_MARK = b"<!--cost-->"
"""Where the overview at the root says what it took, which differs from run to run."""
OTHERS_MARK = b"<!--pages-->"
"""Where the overview leads to the other pages at the root, once they are there."""
OTHERS = (
    ("localization.html", "Where in the image", "Typicality against boxes and masks of its label."),
    ("parallel.html", "Across labels", "The same places redrawn under every label."),
    ("compare.html", "Other methods", "What they find typical, and at what cost."),
    ("study.html", "Study of finetuning", "What is found after how many steps."),
    ("study-timesteps.html", "Study of timesteps", "Which of them tell what is typical."),
    ("study-noise.html", "Study of noise", "How much of a map is chance."),
    (
        "study-patch-sizes.html",
        "Study of patch sizes",
        "The same maps, cut in several sizes.",
    ),
    ("study-clusters.html", "Study of clusters", "Ways of clustering, and what each mixes."),
    ("study-predictability.html", "Study of predictability", "How well patches tell their label."),
    ("study-generated.html", "Study of generated images", "What the model paints, mined alike."),
)
NIGHTS, NIGHTS_MARK = "nights/index.html", b"<!--nights-->"
"""The page of all nights at the root, and where the overview leads to it once it is there."""
_NIGHTS_LINK = f'<nav class="trail"><a href="{NIGHTS}">Night by night</a></nav>'.encode()


def report_unit(
    results: Results,
    facts: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
    signs: str | None = None,
) -> Unit:
    """The unit of one page: the units it shows and the words it says about them."""
    inputs = (
        results.selection,
        *(key for _, key in results.clusters),
        results.finetune or "",
        results.selection_before or "",
        signs or "",
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
    signs: str | None = None,
) -> Done:
    """Draw and publish the page; `signs` is the key of the unit of its signs of failure."""
    opened = open_root(root)

    def produce(attempt: Attempt) -> None:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as aside:
            source = site_source(opened, title, results, facts, truth, signs, Path(aside))
            with Progress(STAGE, len(source.labels), "labels") as progress:
                write_site(source, Path(folder), progress.advance)
            attempt.write_folder(Path(folder))
            attempt.write_bytes(ROOT_PAGE, render_index(source, PLACE).encode())
        attempt.write_json(RESULTS, asdict(results))

    return fill(root, report_unit(results, facts, truth, signs), produce)


def publish_page(root: str, key: str, stage: str = STAGE, name: str = INDEX) -> str:
    """Let the page `name` at the root show the unit `key` of a stage; returns its URL."""
    opened = open_root(root)
    manifest = finished(opened, stage, key)
    page = read_bytes(opened, manifest, ROOT_PAGE)
    # With the quote before it: what a label says is escaped and holds none.
    linked = page.replace(f'"{PLACE}'.encode(), f'"{manifest.attempt}/'.encode())
    if opened.exists(NIGHTS):
        linked = linked.replace(NIGHTS_MARK, _NIGHTS_LINK, 1)
    there = set(opened.names())
    if name == INDEX:
        results = Results.from_json(read_json(opened, manifest, RESULTS))
        linked = linked.replace(COST_MARK, render_facts(made_with(opened, results)).encode(), 1)
    if others := [other for other in OTHERS if other[0] in there]:
        linked = linked.replace(OTHERS_MARK, render_pages(others).encode(), 1)
    opened.write_bytes(name, linked)
    overview = summarised_report(opened)
    if name not in there and name != INDEX and overview and read_manifest(opened, STAGE, overview):
        publish_page(root, overview)  # which now leads to this one
    return opened.url_of(name)


def publish_summary(root: str, summary: Mapping[str, Any]) -> None:
    """Write the run's numbers to `summary.json` at the root, which browsers may have.

    Its page is named as it lies there, without the folders of this machine.
    """
    shown = {**summary, "page": summary["page"].rpartition("/")[2]}
    open_root(root).write_bytes("summary.json", json.dumps(shown, indent=2).encode() + b"\n")


def site_source(
    root: Root,
    title: str,
    results: Results,
    facts: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
    signs: str | None,
    aside: Path,
) -> SiteSource:
    """All that the page is drawn from.

    The maps of images that it may show, and the table of all images, are put into the folder
    `aside`, which stays as long as the source is used.
    """
    selection = selected(root, results.selection)
    before = selected(root, results.selection_before) if results.selection_before else None
    clustered = current_clusters(root, results)
    ranking = rank_images(
        image_typicality(root, results.selection, results.dataset), aside / "images.parquet"
    )
    shown = shown_pairs(selection, before, clustered, ranking)
    after_maps = spooled(root, results.typicality, aside / "after.maps", shown)
    before_maps = spooled(root, results.typicality_before, aside / "before.maps", shown)
    embedded = features_of_labels(root, results)
    set_aside = list(set_aside_rows(root, results.dataset))
    set_aside += typicality.set_aside_images(root, results.dataset, results.typicality)
    return SiteSource(
        title=title,
        images=results.images,
        labels=sorted({label for shard in results.dataset for label, _ in shard.labels}),
        selection=selection,
        clusters=clustered,
        cluster_summary=cluster_summary(clustered),
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
        losses=training_losses(root.url, results.finetune) if results.finetune else None,
        preview=finetune.last_preview(root.url, results.finetune) if results.finetune else None,
        signs=found_signs(root.url, signs) if signs else (),
        sign_picture=(lambda name: sign_picture(root, signs, name)) if signs else None,
        model_card=finetune.card(root, results.finetune) if results.finetune else None,
        ranking=ranking,
        shown=ShownAddresses.at(root),
        features=lambda label: patch_features(root, embedded[label]) if label in embedded else None,
    )


def spooled(root: Root, keys: Sequence[str], path: Path, wanted: set[Pair]) -> SpooledMaps:
    """The wanted maps of these units, in the file `path`."""
    units = (read_maps(root, finished(root, typicality.STAGE, key)) for key in keys)
    return SpooledMaps(path, units, wanted)


def made_with(root: Root, results: Results) -> dict[str, Any]:
    """What the published units say of how they came about: their cost, by stage, and versions."""
    keys = {
        finetune.STAGE: [results.finetune] if results.finetune else [],
        typicality.STAGE: [*results.typicality, *results.typicality_before],
        features.STAGE: list(features_of_labels(root, results).values()),
    }
    cost, versions = {}, dict[str, str]()
    for stage, of_stage in keys.items():
        units = [finished(root, stage, key) for key in of_stage]
        if not units:
            continue
        seconds = sum(unit.seconds for unit in units)
        forwards = sum(unit.counts.get("unet_forwards", 0) for unit in units)
        devices = ", ".join(sorted({unit.device for unit in units}))
        cost[stage] = (
            f"{timedelta(seconds=round(seconds))} on {devices}, {forwards:,} UNet forwards"
        )
        versions |= units[-1].versions
    return {"cost": cost, "versions": versions}


def features_of_labels(root: Root, results: Results) -> dict[str, str]:
    """The key of the features that each label's clusters were made from."""
    return {label: finished(root, clusters.STAGE, key).inputs[0] for label, key in results.clusters}


def patch_features(root: Root, key: str) -> PatchFeatures:
    """The features of a label's highest patches."""
    table = label_features(root, key)
    columns = (table.column(name).to_pylist() for name in ("image_id", "y", "x"))
    places = {place: row for row, place in enumerate(zip(*columns, strict=True))}
    return PatchFeatures(places, feature_matrix(table))


def training_losses(root: str, key: str) -> Losses:
    """What the page shows of the losses of a published finetuning."""
    columns = finetune.losses(root, key)
    held_out, bins = columns["held_out"], columns["bins"]
    return Losses(
        training=list(zip(columns["step"], columns["loss"], strict=True)),
        held_out=list(zip(held_out["step"], held_out["loss"], strict=True)),
        seen=list(zip(held_out["step"], held_out["seen"], strict=True)),
        first_bins=bins["loss"][0] if bins["loss"] else [],
        last_bins=bins["loss"][-1] if bins["loss"] else [],
    )


def store_study_page(attempt: Attempt, page: StudyPage) -> None:
    """Write the page of a study or comparison with its files, and as it stands at the root."""
    with tempfile.TemporaryDirectory() as folder:
        write_study_page(page, Path(folder))
        attempt.write_folder(Path(folder))
    attempt.write_bytes(ROOT_PAGE, render_study_page(page, PLACE).encode())
