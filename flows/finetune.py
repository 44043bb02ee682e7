"""Finetune a model by itself, to mine with it elsewhere or to look at it; or say what it will cost.

`mine` finetunes too: on a root where this has been done it takes the model that is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.models.files import Geometry, find_model, model_geometry
from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.report.escaping import markdown_text
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Manifest, file_url, finished
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.answers import Told, check_cost, cost_told
from flows.checks import check_inputs
from flows.fan_out import BatchFlow, Work, decided, fan_out, planned_there
from flows.index import index_split
from flows.parameters import FinetuneParameters, TypicalityParameters
from flows.run_ledger import RunLedger
from tasks.finetune import finetune as finetune_task
from tasks.finetune import finetune_unit, finetuned_before, finetuned_model, trained_on
from tasks.index import dataset_counts, index
from tasks.models import ModelReference, base_model, choose_device
from tasks.units import Done


@flow(name="finetune", flow_run_name="finetune {parameters.title}", log_prints=True)
def finetune(parameters: FinetuneParameters) -> dict[str, Any]:
    """Index what is trained on, train, and say where the model lies."""
    check(parameters)
    _, dataset = index_split(parameters, trained_split(parameters))
    options = parameters.finetune_options(image_geometry(parameters).size)
    done = train(parameters, dataset, base_model(parameters.start_source()), options)
    summary = finetuned(parameters, done)
    said = markdown_text(f"{parameters.title}: model at {summary['model']}", 300)
    create_markdown_artifact(markdown(summary), key="finetune", description=said)
    get_run_logger().info("The finetuned model is %s", summary["model"])
    return summary


def check(parameters: FinetuneParameters) -> None:
    """InputError for what cannot be finetuned; else the root is claimed."""
    if parameters.settings().finetune_steps == 0:
        raise InputError(
            "finetune_steps should be 1 or more, but is 0, with which there is nothing to train."
        )
    check_inputs(parameters)


def finetuned(parameters: FinetuneParameters, done: Done) -> dict[str, Any]:
    """What a published finetuning is and how it went."""
    root = open_root(parameters.root)
    manifest = finished(root, done.stage, done.key)
    model = file_url(root, manifest, "model/model_index.json").removesuffix("/model_index.json")
    wanted = ("best_step", "held_out_loss", "rising_since", "precision", "images_per_second")
    return {
        "model": model,
        "key": done.key,
        "computed": done.computed,
        "images": manifest.counts["images"],
        "labels": len(manifest.facts["labels"]),
        "seconds": manifest.seconds,
        **{name: manifest.facts[name] for name in wanted},
    }


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a table for the Prefect UI."""
    return "| | |\n|---|---|\n" + "\n".join(
        f"| {name.replace('_', ' ')} | {markdown_text(str(value), 1000)} |"
        for name, value in summary.items()
    )


def dry_run(parameters: FinetuneParameters, cost_per_hour: float | None = None) -> list[Told]:
    """What a finetuning would take; indexes the images, trains nothing."""
    check_cost(cost_per_hour)
    check(parameters)
    # Only now: it loads torch, and a refusal should not take seconds.
    from diffmining_core.finetuning.estimate import estimate, finetune_forwards

    # Not as a task: nobody should wait for a server to be told what a run would cost.
    _, dataset = index_split(parameters, trained_split(parameters), index.fn)
    files = find_model(parameters.start_source())
    options = FinetuneOptions.from_options(
        parameters.finetune_options(image_geometry(parameters).size)
    )
    running = FinetuneRunning(**parameters.finetune_running())
    configs = {name: files.config(name) for name in ("unet", "vae", "text_encoder")}
    images = sum(shard.images for shard in dataset)
    device = choose_device(parameters.device).name
    cost = estimate(configs, images, options, running, device)
    how = (
        f"measured in two steps on this {device}"
        if cost.measured
        else "assumed: an H200 that reaches 40 % of its 790 TFLOP/s; this device was not tried"
    )
    steps = f"{options.steps:,} of {options.batch_size} images at {options.side} px"
    memory, stored = sum(cost.memory.values()), cost.memory["weights"]
    flops = cost.step_flops
    forwards = finetune_forwards(options, running, images, len(dataset_counts(dataset)))
    lines = [
        Told("images", images, f"{images:,}"),
        Told("steps", options.steps, steps),
        Told("epochs", cost.epochs, f"{cost.epochs:.3g}"),
        Told("forwards", forwards, f"{forwards:,}"),
        Told("processes", running.processes, str(running.processes)),
        Told("arithmetic", flops, f"{flops / 1e12:.3g} TFLOP a step"),
        *(Told(f"memory: {name}", size, size_text(size)) for name, size in cost.memory.items()),
        Told("memory of each device", memory, f"about {size_text(memory)} (estimated)"),
        Told("time", cost.seconds, f"about {time_text(cost.seconds)} ({how})"),
        Told("disk", stored, f"about {size_text(stored)} at the root"),
    ]
    return lines if cost_per_hour is None else [*lines, cost_told(cost.seconds, cost_per_hour)]


def trained_split(parameters: FinetuneParameters) -> str:
    """The split that is trained on; where the same images are mined, the shards are the same."""
    return TRAIN if parameters.chosen_recipe().trains_on_others else MINED


def train(
    parameters: FinetuneParameters,
    dataset: Sequence[Shard],
    start: ModelReference,
    options: dict[str, Any],
) -> Done:
    """Train on these shards from a model on, unless that has been done."""
    unit = finetune_unit(dataset, start, options)
    plan_stage(open_root(parameters.root), unit.stage, [unit.key])
    device, running = choose_device(parameters.device), parameters.finetune_running()
    return finetune_task(parameters.root, dataset, start, options, running, device)


def trained_shards(
    parameters: FinetuneParameters, dataset: list[Shard], run: RunLedger
) -> list[Shard]:
    """What is trained on: the shards that are mined, or others that the recipe names."""
    settings = parameters.settings()
    if not (settings.finetune_steps and settings.recipe.trains_on_others):
        return dataset
    units, others = index_split(parameters, TRAIN)
    run.add(units)
    return others


def finetune_model(
    parameters: TypicalityParameters, trained: list[Shard], size: int, run: RunLedger
) -> tuple[ModelReference, list[str]]:
    """The model to mine with, and sentences about it that its user should read."""
    start = base_model(parameters.start_source())
    if parameters.settings().finetune_steps == 0:
        return start, []
    root, options = parameters.root, parameters.finetune_options(size)
    kept = finetuned_before(root, trained, start, options)
    current = {shard.content_id for shard in trained}
    if kept is None or (parameters.retrain and set(kept.inputs[1:]) != current):
        (done,) = run.add(trained_where_decided(parameters, trained, start, options))
        return finetuned_model(root, start, done.key), []
    plan_stage(open_root(root), kept.stage, [kept.key])
    return finetuned_model(root, start, kept.key), notes_on_kept(kept, trained)


def notes_on_kept(kept: Manifest, dataset: list[Shard]) -> list[str]:
    """What the model that is kept does not know of the dataset as it is now."""
    notes = []
    unseen = sorted(set(dataset_counts(dataset)) - set(kept.facts["labels"]))
    seen = trained_on(kept, dataset)
    if unseen:
        notes.append(
            f"The model was finetuned before {', '.join(unseen)} came to the dataset and does not "
            "know what is typical of it; run once with --retrain."
        )
    elif len(seen) < len(dataset):
        notes.append(
            f"The model kept was finetuned on {len(seen)} of {len(dataset)} shards; "
            "--retrain finetunes on all."
        )
    if set(kept.inputs[1:]) - {shard.content_id for shard in dataset}:
        notes.append(
            "The model kept was finetuned also on images that have since left the dataset or got "
            "another label; --retrain finetunes without them."
        )
    return notes


def trained_where_decided(
    parameters: TypicalityParameters,
    trained: Sequence[Shard],
    start: ModelReference,
    options: dict[str, Any],
) -> list[Done]:
    """Train in this process, or in a run of the deployment `finetune` on the gpu pool."""
    if decided(parameters.fanout) == "inline":
        return [train(parameters, trained, start, options)]
    unit = finetune_unit(trained, start, options)
    there = planned_there(parameters.root, unit.stage, [unit.key])

    def alone(_: Sequence[None]) -> FinetuneParameters:
        fields = FinetuneParameters.model_fields
        return FinetuneParameters(**{name: getattr(parameters, name) for name in fields})

    work = [Work(unit, f"finetuning {parameters.dataset_name}", None)]
    return fan_out(parameters.root, work, there, BatchFlow(finetune, alone, 1), "deployment")


def image_geometry(parameters: FinetuneParameters) -> Geometry:
    """The model's, with the shorter side of the images that the user or the recipe says."""
    geometry = model_geometry(find_model(parameters.model_source()))
    return replace(geometry, size=parameters.settings().size or geometry.size)


def size_text(size: float) -> str:
    """Bytes for a person."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.{2 if unit == 1e9 else 0}f} {name}"
    return f"{size / 1e3:.0f} kB"


def time_text(seconds: float) -> str:
    """Seconds for a person."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
