"""Does typicality, learnt from labels of whole images, tell where in an image its label is?"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from diffmining_core.recipes import MINED
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.localization import markdown
from diffmining_core.report.shown_addresses import without_paths
from flows.checks import check_inputs
from flows.fan_out import planned_there
from flows.finetune import finetune_model, image_geometry, trained_shards
from flows.index import index_split
from flows.parameters import LocalizeParameters
from flows.run_ledger import RunLedger
from flows.typicality import how_measured, measure
from tasks.evaluation import BOXES, TruthReference, find_truth, read_truth
from tasks.localization import (
    Located,
    localization,
    localization_numbers,
    localization_unit,
    located_images,
    shards_to_measure,
)
from tasks.models import base_model
from tasks.report import publish_page

AS_GIVEN, BEFORE, AFTER = "as given", "before", "after"
"""The model: where nothing is finetuned; before and after finetuning."""

PAGE = "localization.html"


@flow(name="localize", flow_run_name="localize {parameters.title}", log_prints=True)
def localize(parameters: LocalizeParameters) -> dict[str, Any]:
    """Finetune on image labels, measure the images whose label is located, score their maps.

    Returns the numbers of the page `localization.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    with run.stage("index"):
        units, dataset = index_split(parameters, MINED)
        run.add(units)
        truth = known_truth(parameters)
        located = located_images(root, dataset, truth)
        trained = trained_shards(parameters, dataset, run)
        size = image_geometry(parameters).size
    with run.stage("finetune"):
        model, notes = finetune_model(parameters, trained, size, run)
    for note in notes:
        get_run_logger().warning(note)

    base = base_model(parameters.model_source())
    models = {AS_GIVEN: model} if model == base else {BEFORE: base, AFTER: model}
    options = parameters.typicality_options(size)
    sides = {
        f"typicality {name}": (shards_to_measure(root, located, of_side, options), of_side)
        for name, of_side in models.items()
    }
    keys = dict(zip(models, measure(parameters, sides, size, run), strict=True))
    with run.stage("localization"):
        facts = localization_facts(parameters, located, truth, size, notes)
        unit = localization_unit(located, keys, size, facts)
        planned_there(root, unit.stage, [unit.key])
        title = f"Localisation in {parameters.dataset_name}"
        (done,) = run.add([localization(root, title, truth, located, keys, size, facts)])
        page = publish_page(root, done.key, unit.stage, PAGE)

    summary = {**localization_numbers(root, done.key), **run.summary(), "page": page}
    said = markdown_text(f"{parameters.title}: page {page}", 300)
    create_markdown_artifact(markdown(summary, page), key="localize", description=said)
    get_run_logger().info("The page of scores is %s", page)
    return summary


def check(parameters: LocalizeParameters) -> None:
    """Refuse what cannot be measured or scored; else claim the root."""
    find_truth(parameters.dataset, parameters.masks)
    check_inputs(parameters)


def known_truth(parameters: LocalizeParameters) -> TruthReference:
    """The masks or planted elements, or else the images' own boxes."""
    if known := find_truth(parameters.dataset, parameters.masks):
        return read_truth(*known)
    return TruthReference(BOXES, parameters.dataset, "")


def localization_facts(
    parameters: LocalizeParameters,
    located: Located,
    truth: TruthReference,
    size: int,
    notes: list[str],
) -> dict[str, Any]:
    """How the scores were come by, for the page's readers."""
    return {
        "notes": notes,
        "dataset": {
            "name": parameters.dataset_name,
            **({"recipe": parameters.chosen_recipe().title} if parameters.recipe else {}),
            "images with a label that is located": located.pairs,
            "located by": without_paths(truth.source),
        },
        **how_measured(parameters, size),
    }
