"""Mine what is typical of each label: from a folder of labelled images to a page of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from diffmining_core.images.shards import check_labels
from diffmining_core.images.tally import Reason
from diffmining_core.recipes import MINED
from diffmining_core.report.escaping import markdown_text
from diffmining_core.results.references import Results, summarised_report
from diffmining_core.signs import Sign
from diffmining_core.store.ledger import CorruptFileError, Manifest, finished
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.checks import check_inputs
from flows.embed import embed
from flows.fan_out import Work, planned_there, run_missing
from flows.finetune import finetune_model, image_geometry, trained_shards
from flows.index import index_split
from flows.parameters import MineParameters
from flows.run_ledger import RunLedger
from flows.selection import choose, measure_in_rounds, pick_patches
from flows.typicality import how_measured, measure
from tasks.clusters import clusters, clusters_unit, lowered_k
from tasks.evaluation import (
    evaluate,
    evaluation_unit,
    measured_truth,
    truth_digest,
    truth_file,
)
from tasks.finetune import shards_trained_on
from tasks.index import dataset_counts
from tasks.models import base_model
from tasks.progress import Progress
from tasks.refinement import Decided
from tasks.report import (
    publish_page,
    publish_summary,
    report,
    report_unit,
)
from tasks.selection import label_digests
from tasks.signs import found_signs, signs, signs_unit
from tasks.typical import typical_in_the_end
from tasks.typicality import set_aside_count
from tasks.units import CorruptUnitsError, Done
from tasks.verification import retract_all, verify

SIGNS_SAID = 20
"""In the Prefect UI; the page has all."""


@flow(name="mine", flow_run_name="mine {parameters.title}", log_prints=True)
def mine(parameters: MineParameters) -> dict[str, Any]:
    """Index, finetune, measure typicality, pick patches, cluster them and draw the page.

    Returns the summary that is also kept as `summary.json` at the root. Every stage keeps its
    results at the root, so a rerun computes only what is missing. A stored result that proves
    damaged where it is read is taken back and made anew, once each.
    """
    logger = get_run_logger()
    run = RunLedger()
    check_inputs(parameters)
    if parameters.mode == "verify":
        run.repair(parameters.root, verify(parameters.root))
    elif parameters.mode == "recompute":
        retract_all(parameters.root)
    while True:
        try:
            summary = mine_once(parameters, run)
            pictures = typical_in_the_end(parameters.root, summary["report"])
            break
        except CorruptFileError as error:
            run.repair(parameters.root, [error])
        except CorruptUnitsError as error:
            run.repair(parameters.root, error.damaged)
    create_markdown_artifact(
        summary_markdown(summary, pictures),
        key="mine",
        description=summary_sentence(parameters, summary),
    )
    logger.info("The page of results is %s", summary["page"])
    return summary


def mine_once(parameters: MineParameters, run: RunLedger) -> dict[str, Any]:
    """One pass through all stages, each computing what is missing; returns the summary."""
    root = parameters.root
    with run.stage("index"):
        units, dataset = index_split(parameters, MINED)
        run.add(units)
        counts = dataset_counts(dataset)
        check_labels(counts, parameters.min_images)
        trained = trained_shards(parameters, dataset, run)
        base = base_model(parameters.model_source())
        geometry = image_geometry(parameters)
        size, cell = geometry.size, geometry.cell

    with run.stage("finetune"):
        model, notes = finetune_model(parameters, trained, size, run)
    for note in notes:
        get_run_logger().warning(note)

    compared = dataset if trained is not dataset else shards_trained_on(root, model, dataset)
    if model == base:
        compared = []
    elif parameters.before_shards >= 0:
        compared = compared[: parameters.before_shards]
    sides = {"typicality": (dataset, model), "typicality_before": (compared, base)}
    patch_options = parameters.patch_options(size, cell)
    first = {"typicality": parameters.first_round(size, cell)} if parameters.adaptive else None
    after_keys, before_keys = measure(parameters, sides, size, run, patch_options, first)
    sure: Decided | None = None
    if parameters.adaptive:
        after_keys, sure = measure_in_rounds(
            parameters, dataset, model, size, after_keys, patch_options, run
        )
    unusable = set_aside_count(root, dataset, after_keys)

    with run.stage("patches"):
        picked = pick_patches(parameters, [*after_keys, *before_keys], patch_options, run)
    with run.stage("selection"):
        chosen_from = [(dataset, [picked[key] for key in after_keys])]
        if compared:
            chosen_from.append((compared, [picked[key] for key in before_keys]))
        selection, *before = choose(parameters, chosen_from, run)

    digests = label_digests(root, selection)
    with run.stage("features"):
        embedded = embed(parameters, selection, digests, model, size, run)
    with run.stage("clusters"):
        clustered = cluster(parameters, embedded, run)
        lowered = (lowered_k(root, key, parameters.k) for key in clustered.values())
        notes += [sentence for sentence in lowered if sentence]

    results = Results(
        dataset=tuple(dataset),
        images=sum(shard.images for shard in dataset) - unusable,
        size=size,
        typicality=tuple(after_keys),
        selection=selection,
        clusters=tuple(clustered.items()),
        finetune=model.finetuned,
        compared=tuple(compared),
        typicality_before=tuple(before_keys),
        selection_before=before[0] if before else None,
    )
    truth = None
    if truth_url := truth_file(parameters.dataset):
        with run.stage("evaluation"):
            digest = truth_digest(truth_url)
            unit = evaluation_unit(results, digest, cell)
            plan_stage(open_root(root), unit.stage, [unit.key])
            (done,) = run.add([evaluate(root, truth_url, digest, results, cell)])
            truth = measured_truth(root, done.key)

    with run.stage("signs"):
        unit = signs_unit(results, cell)
        plan_stage(open_root(root), unit.stage, [unit.key])
        (done,) = run.add([signs(root, results, cell)])
        seen = done.key
    with run.stage("report"):
        title = f"What is typical in {parameters.dataset_name}"
        state = finished(open_root(root), units[-1].stage, units[-1].key)
        facts = page_facts(parameters, results, state, patch_options["size"], notes, sure)
        unit = report_unit(results, facts, truth, seen)
        plan_stage(open_root(root), unit.stage, [unit.key])
        (done,) = run.add([report(root, title, results, facts, truth, seen)])
        page = publish_page(root, done.key)

    summary = {
        **(truth or {}),
        **run.summary(),
        "images": results.images,
        "set_aside": sum(shard.set_aside for shard in dataset) + unusable,
        "labels": counts,
        "shards": len(dataset),
        "notes": notes,
        "signs": [sign.as_json() for sign in found_signs(root, seen)],
        **({"adaptive": asdict(sure)} if sure else {}),
        "report": done.key,
        "page": page,
    }
    # A rerun that finds everything leaves the numbers of the run that made the page.
    if any(unit.computed for unit in run.done) or summarised_report(open_root(root)) != done.key:
        publish_summary(root, summary)
    return summary


def cluster(parameters: MineParameters, embedded: dict[str, str], run: RunLedger) -> dict[str, str]:
    """The keys of each label's clusters."""
    root, k, finer = parameters.root, parameters.k, parameters.finer
    work = [
        Work(clusters_unit(key, k, finer), label, (label, key)) for label, key in embedded.items()
    ]

    there = planned_there(root, "clusters", [one.unit.key for one in work])
    if missing := [one for one in work if one.unit.key not in there]:
        with Progress("clusters", len(missing), "labels") as progress:

            def cluster_label(item: tuple[str, str]) -> State[Done]:
                state = clusters(root, *item, k, finer, return_state=True)
                progress.advance()
                return state

            run.add(run_missing(missing, cluster_label))
    return {one.name: one.unit.key for one in work}


_TOLD_OF_DATASET = (("left out", "left_out"), ("scaled", "scaled"))
"""What the page tells of a dataset's rows, and the fact of its state that has it."""


def _lines(reasons: Mapping[str, Reason]) -> list[str]:
    return [f"{found['count']:,} × {reason}" for reason, found in reasons.items()]


def page_facts(
    parameters: MineParameters,
    results: Results,
    state: Manifest,
    patch_size: int,
    notes: list[str],
    sure: Decided | None,
) -> dict[str, Any]:
    """How the page was made, for its readers; `state` is the dataset's."""
    told = {name: _lines(state.facts[what]) for name, what in _TOLD_OF_DATASET}
    settings = parameters.settings()
    measured = how_measured(parameters, results.size)
    if sure:
        measured["typicality"] |= sure.as_facts(parameters.draws)
    return {
        "notes": notes,
        "dataset": {
            "name": parameters.dataset_name,
            **({"recipe": settings.recipe.title} if parameters.recipe else {}),
            "rows": state.counts["listed"],
            "images": results.images,
            "set aside": sum(shard.images + shard.set_aside for shard in results.dataset)
            - results.images,
            **{name: lines for name, lines in told.items() if lines},
            "shards": len(results.dataset),
        },
        **measured,
        "patches": {
            "size": f"{patch_size} px",
            "per image": parameters.patches_per_image,
            "per label": parameters.top,
            "clusters per label": parameters.k,
            **({"merged from": parameters.finer * parameters.k} if parameters.finer > 1 else {}),
        },
    }


def summary_markdown(summary: dict[str, Any], pictures: str) -> str:
    """The summary as a table for the Prefect UI, what is typical, and what to doubt about it."""
    rows = [
        ("images", f"{summary['images']:,}"),
        ("set aside", f"{summary['set_aside']:,}"),
        ("labels", f"{len(summary['labels']):,}"),
        ("shards", f"{summary['shards']:,}"),
        ("UNet forwards", f"{summary['unet_forwards']:,}"),
        ("seconds", f"{summary['seconds']:,}"),
        ("page", markdown_text(summary["page"], 1000)),
    ]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    parts = [table, "## What is typical", pictures]
    if signs := [Sign.from_json(sign).as_text() for sign in summary["signs"]]:
        parts += ["## Signs of failure"]
        parts += ["\n".join(f"- {markdown_text(sign, 1000)}" for sign in signs[:SIGNS_SAID])]
        if more := len(signs) - SIGNS_SAID:
            parts += [f"{more:,} more are on the page."] if more > 0 else []
    return "\n\n".join(parts)


def summary_sentence(parameters: MineParameters, summary: dict[str, Any]) -> str:
    """What the artifact is called in the Prefect UI, which draws it as Markdown."""
    return markdown_text(
        f"{parameters.title}: {summary['images']:,} images, {len(summary['labels']):,} labels; "
        f"page {summary['page']}",
        300,
    )
