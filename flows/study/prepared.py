"""What the studies of one model have in common: the shards, the model, and what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from diffmining_core.images.shards import check_labels
from diffmining_core.models.files import Geometry
from diffmining_core.recipes import MINED
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.shown_addresses import without_paths
from diffmining_core.report.study_page import Table, markdown
from diffmining_core.results.references import Shard
from flows.checks import check_inputs
from flows.finetune import finetune_model, image_geometry, trained_shards
from flows.index import index_split
from flows.parameters import MinedStudyParameters
from flows.run_ledger import RunLedger
from flows.selection import choose, pick_patches
from flows.typicality import how_measured, measure
from tasks.evaluation import TruthReference, find_truth, read_truth
from tasks.index import dataset_counts
from tasks.models import ModelReference
from tasks.study_truth import box_truth


@dataclass(frozen=True)
class Prepared:
    """What is studied: some shards, and the model that they are mined with."""

    dataset: list[Shard]
    model: ModelReference
    geometry: Geometry
    truth: TruthReference | None
    notes: list[str]


@dataclass(frozen=True)
class Mined:
    """Maps and selection of what was mined, by their keys."""

    typicality: tuple[str, ...]
    selection: str


def check(parameters: MinedStudyParameters) -> None:
    """Refuse what cannot be mined or has no such masks; else claim the root."""
    find_truth(parameters.dataset, parameters.masks)
    check_inputs(parameters)


def prepare(parameters: MinedStudyParameters, run: RunLedger) -> Prepared:
    """Index, and finetune or take the model that is there, as `mine` does."""
    with run.stage("index"):
        units, dataset = index_split(parameters, MINED)
        run.add(units)
        check_labels(dataset_counts(dataset), parameters.min_images)
        trained = trained_shards(parameters, dataset, run)
        geometry = image_geometry(parameters)
    with run.stage("finetune"):
        model, notes = finetune_model(parameters, trained, geometry.size, run)
    for note in notes:
        get_run_logger().warning(note)
    if parameters.shards >= 0:
        dataset = dataset[: parameters.shards]
    truth = known_answer(parameters, dataset)
    return Prepared(dataset, model, geometry, truth, notes)


def known_answer(parameters: MinedStudyParameters, dataset: list[Shard]) -> TruthReference | None:
    """The masks or planted elements, or else the boxes of the images; None if nothing is known."""
    if known := find_truth(parameters.dataset, parameters.masks):
        return read_truth(*known)
    return box_truth(parameters.root, dataset, parameters.dataset)


def mine_sides(
    parameters: MinedStudyParameters,
    prepared: Prepared,
    changes: dict[str, dict[str, Any]],
    run: RunLedger,
) -> dict[str, Mined]:
    """The same shards mined in several ways: with what of the maps' options changes, by name."""
    size, cell = prepared.geometry.size, prepared.geometry.cell
    sides = dict.fromkeys(changes, (prepared.dataset, prepared.model))
    keys = measure(parameters, sides, size, run, changes=changes)
    with run.stage("patches"):
        options = parameters.patch_options(size, cell)
        distinct = list(dict.fromkeys(key for of_side in keys for key in of_side))
        picked = pick_patches(parameters, distinct, options, run)
    with run.stage("selection"):
        chosen_from = [(prepared.dataset, [picked[key] for key in of_side]) for of_side in keys]
        selections = choose(parameters, chosen_from, run)
    return {
        name: Mined(tuple(of_side), selection)
        for name, of_side, selection in zip(changes, keys, selections, strict=True)
    }


def study_facts(parameters: MinedStudyParameters, prepared: Prepared) -> dict[str, Any]:
    """How a study was made, for the page's readers."""
    size = prepared.geometry.size
    return {
        "notes": prepared.notes,
        "dataset": {
            "name": parameters.dataset_name,
            "images": sum(shard.images for shard in prepared.dataset),
            "known answer": without_paths(prepared.truth.source) if prepared.truth else "none",
        },
        **how_measured(parameters, size),
        "patches": {
            "size": f"{parameters.patch_options(size, prepared.geometry.cell)['size']} px",
            "per image": parameters.patches_per_image,
            "per label": parameters.top,
        },
    }


def announce(parameters: MinedStudyParameters, name: str, table: dict[str, Any], page: str) -> None:
    """Show the study's table in the Prefect UI, and say where the page is."""
    said = markdown_text(f"{parameters.title}: page {page}", 300)
    text = markdown(Table(**table), page)
    create_markdown_artifact(text, key=f"study-{name}", description=said)
    get_run_logger().info("The page of the study is %s", page)
