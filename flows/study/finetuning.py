"""Studies: what decides how well mining does, measured on data whose answer is known."""

from __future__ import annotations

from typing import Any

from prefect import flow

from diffmining_core.errors import InputError
from diffmining_core.recipes import MINED
from diffmining_core.report.shown_addresses import without_paths
from diffmining_core.results.references import Shard
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.finetune import image_geometry, train, trained_shards
from flows.index import index_split
from flows.parameters import StudyParameters
from flows.run_ledger import RunLedger
from flows.selection import choose, pick_patches
from flows.study import prepared
from flows.study.prepared import known_answer
from flows.typicality import how_measured, measure
from tasks.evaluation import TruthReference
from tasks.finetune import snapshot_model
from tasks.models import ModelReference, base_model
from tasks.report import publish_page
from tasks.study import Mined, study, study_numbers, study_unit


@flow(name="study finetuning", flow_run_name="study {parameters.title}", log_prints=True)
def study_finetuning(parameters: StudyParameters) -> dict[str, Any]:
    """Finetune once, keep the models of some steps, mine with each, measure each.

    Returns the numbers of the page `study.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    with run.stage("index"):
        units, indexed = index_split(parameters, MINED)
        run.add(units)
        dataset = indexed if parameters.shards < 0 else indexed[: parameters.shards]
        truth = required_answer(parameters, dataset)
        trained = trained_shards(parameters, indexed, run)
        geometry = image_geometry(parameters)
        size = geometry.size
    with run.stage("finetune"):
        models = snapshot_models(parameters, trained, size, run)
    sides = {f"typicality at {step}": (dataset, model) for step, model in models.items()}
    keys = measure(parameters, sides, size, run)
    with run.stage("patches"):
        options = parameters.patch_options(size, geometry.cell)
        picked = pick_patches(
            parameters, [key for of_model in keys for key in of_model], options, run
        )
    with run.stage("selection"):
        chosen_from = [(dataset, [picked[key] for key in of_model]) for of_model in keys]
        selections = choose(parameters, chosen_from, run)
    mined = [
        Mined(step, tuple(of_model), selection)
        for step, of_model, selection in zip(models, keys, selections, strict=True)
    ]
    with run.stage("study"):
        facts = study_facts(parameters, dataset, truth, size)
        unit = study_unit(truth, mined, facts)
        plan_stage(open_root(root), unit.stage, [unit.key])
        title = f"What finetuning does to mining {parameters.dataset_name}"
        (done,) = run.add([study(root, title, truth, dataset, mined, size, geometry.cell, facts)])
        page = publish_page(root, done.key, unit.stage, "study.html")
    return {**study_numbers(root, done.key), **run.summary(), "page": page}


def check(parameters: StudyParameters) -> None:
    """Refuse what cannot be studied; else claim the root."""
    parameters.snapshots()
    prepared.check(parameters)


def required_answer(parameters: StudyParameters, dataset: list[Shard]) -> TruthReference:
    """The truth to measure against; InputError if nothing is known of these shards."""
    if truth := known_answer(parameters, dataset):
        return truth
    raise InputError(
        f"dataset {parameters.dataset} should have a known answer to study it, but has no "
        "truth.parquet, and the images that are mined have no boxes; give --masks, a folder with "
        "LABEL/STEM.png for each image LABEL/STEM.jpg, or a dataset with boxes."
    )


def snapshot_models(
    parameters: StudyParameters, trained: list[Shard], size: int, run: RunLedger
) -> dict[int, ModelReference]:
    """The model before finetuning (0) and after each step that is looked at.

    trained: the shards to train on.
    """
    root, start = parameters.root, base_model(parameters.start_source())
    steps = parameters.snapshots()
    options = parameters.finetune_options(size) | {"snapshots": steps}
    (done,) = run.add([train(parameters, trained, start, options)])
    base = base_model(parameters.model_source())
    return {0: base} | {step: snapshot_model(root, start, done.key, step) for step in steps}


def study_facts(
    parameters: StudyParameters, dataset: list[Shard], truth: TruthReference, size: int
) -> dict[str, Any]:
    """How the study was made, for the page's readers."""
    settings = parameters.settings()
    measured = how_measured(parameters, size)
    return {
        "dataset": {
            "name": parameters.dataset_name,
            "images": sum(shard.images for shard in dataset),
            "known answer": without_paths(truth.source),
        },
        "model": {
            **measured["model"],
            "images a step": settings.finetune_batch,
            "learning rate": f"{parameters.learning_rate:g}, {parameters.schedule}",
        },
        "typicality": measured["typicality"],
        "patches": {"per image": parameters.patches_per_image, "per label": parameters.top},
    }
