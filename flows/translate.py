"""Redraw images under every label, and cluster what is typical in all of them at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field

from diffmining_core.images.reach import DEFAULT_MAX_IMAGE_MB, set_reach
from diffmining_core.models.files import Geometry
from diffmining_core.recipes import MINED
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.parallel import markdown
from diffmining_core.results.references import Shard
from diffmining_core.store.roots import open_root
from flows.checks import check_inputs, check_steps
from flows.fan_out import BatchFlow, Work, planned_there, run_missing, shown_fan_out
from flows.finetune import finetune_model, image_geometry, trained_shards
from flows.index import index_split
from flows.joint_embed import embed_sequences
from flows.parameters import (
    AllowedPlaces,
    DeviceName,
    MaxImageMb,
    Precision,
    TranslateParameters,
    run_title,
)
from flows.run_ledger import RunLedger
from flows.typicality import how_measured, measure, shard_name
from tasks.board import Row
from tasks.evaluation import TruthReference, find_truth, read_truth
from tasks.index import dataset_counts
from tasks.models import ModelReference, choose_device
from tasks.parallel import (
    COTYPICALITY,
    Pair,
    cotypicality,
    cotypicality_unit,
    joint_clusters,
    joint_clusters_unit,
    parallel_notes,
    parallel_numbers,
    parallel_report,
    parallel_report_unit,
    sequences,
    sequences_unit,
)
from tasks.progress import Progress
from tasks.report import publish_page
from tasks.translation import (
    RUN_NAME,
    chosen_sources,
    measured_sources,
    reconstruction_note,
    translated_shard,
    translation,
    translation_unit,
)
from tasks.units import Done

PAGE = "parallel.html"


class TranslateBatch(BaseModel):
    """A few dataset shards to redraw, as `translate` writes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[str, Field(description="Folder or URL for the results.")]
    dataset: Annotated[str, Field(description="What a person calls the dataset.")]
    shards: Annotated[
        list[dict[str, Any]],
        Field(description="References of the shards to redraw.", min_length=1),
    ]
    model: Annotated[dict[str, Any], Field(description="Reference of the model.")]
    targets: Annotated[list[str], Field(description="Labels to redraw images as.", min_length=1)]
    options: Annotated[
        dict[str, Any],
        Field(description="What decides a translation: prompts, size, steps, start, guidance."),
    ]
    batch_size: Annotated[
        int, Field(ge=0, description="Images inverted together; 0 for what the device does best.")
    ] = 0
    device: DeviceName = "auto"
    precision: Precision = "auto"
    allow: AllowedPlaces = ()
    max_image_mb: MaxImageMb = DEFAULT_MAX_IMAGE_MB

    @property
    def title(self) -> str:
        """What the run is about."""
        first, more = Shard.from_json(self.shards[0]).name, len(self.shards) - 1
        shards = f"shard {first}" + (f" and {more} more" if more else "")
        return f"{run_title(self.dataset, self.root)}: {shards}"


@flow(
    name="translate-batch",
    flow_run_name="translation {parameters.title}",
    log_prints=True,
    persist_result=False,
)
def translate_batch(parameters: TranslateBatch) -> list[Done]:
    """Redraw a few shards one after the other, with one model in memory."""
    set_reach(parameters.allow, parameters.max_image_mb)
    model = ModelReference.from_json(parameters.model)
    shards = [Shard.from_json(shard) for shard in parameters.shards]
    work = [
        Work(
            translation_unit(shard, model, parameters.targets, parameters.options),
            shard_name(shard),
            shard,
        )
        for shard in shards
    ]

    def translate_shard(shard: Shard) -> State[Done]:
        return translation(
            parameters.root,
            shard,
            model,
            parameters.targets,
            parameters.options,
            choose_device(parameters.device, parameters.precision),
            parameters.batch_size,
            return_state=True,
        )

    return run_missing(work, translate_shard)


@flow(name="translate", flow_run_name="translate {parameters.title}", log_prints=True)
def translate(parameters: TranslateParameters) -> dict[str, Any]:
    """Finetune, redraw images under every label, and group what is typical in all of them.

    Returns the numbers of the page `parallel.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    with run.stage("index"):
        units, dataset = index_split(parameters, MINED)
        run.add(units)
        labels = parameters.labels(sorted(dataset_counts(dataset)))
        trained = trained_shards(parameters, dataset, run)
        geometry = image_geometry(parameters)
        size = geometry.size
    with run.stage("finetune"):
        model, notes = finetune_model(parameters, trained, size, run)
    for note in notes:
        get_run_logger().warning(note)

    chosen = chosen_sources(root, dataset, labels, parameters.per_label, parameters.seed)
    (measured,) = measure(parameters, {"typicality": (chosen, model)}, size, run)
    sources, own_maps = zip(*measured_sources(root, chosen, measured), strict=True)
    translated = redraw(parameters, sources, model, labels, size, run)
    sides = {"typicality of translations": (translated, model)}
    (their_maps,) = measure(parameters, sides, size, run)
    pairs = [
        Pair(*of_shard) for of_shard in zip(sources, translated, own_maps, their_maps, strict=True)
    ]
    picked = pick_sequences(parameters, pairs, labels, geometry, run)
    with run.stage("sequences"):
        merged = sequences_unit(picked, parameters.top)
        planned_there(root, merged.stage, [merged.key])
        run.add([sequences(root, picked, parameters.top)])
    with run.stage("joint features"):
        embedded = embed_sequences(parameters, merged.key, pairs, labels, model, size, run)
    with run.stage("joint clusters"):
        clusters = joint_clusters_unit(merged.key, embedded, parameters.k)
        planned_there(root, clusters.stage, [clusters.key])
        run.add([joint_clusters(root, merged.key, embedded, parameters.k)])

    notes = [
        *notes,
        *reconstruction_note(root, [shard.key for shard in translated]),
        *parallel_notes(root, picked, clusters.key, parameters.k),
    ]
    truth, facts = planted_truth(parameters), parallel_facts(parameters, sources, size, notes)
    with run.stage("report"):
        title = f"{parameters.dataset_name} under every label"
        drawn = parallel_report_unit(labels, clusters.key, truth, size, facts)
        planned_there(root, drawn.stage, [drawn.key])
        run.add([parallel_report(root, title, labels, pairs, clusters.key, truth, size, facts)])
        page = publish_page(root, drawn.key, drawn.stage, PAGE)

    summary = {**parallel_numbers(root, drawn.key), **run.summary(), "page": page}
    said = markdown_text(f"{parameters.title}: page {page}", 300)
    create_markdown_artifact(markdown(summary, page), key="translate", description=said)
    get_run_logger().info("The page of joint clusters is %s", page)
    return summary


def check(parameters: TranslateParameters) -> None:
    """Refuse what cannot be redrawn or measured; else claim the root."""
    check_steps(parameters.steps, parameters.inversion_stride)
    check_inputs(parameters)


def planted_truth(parameters: TranslateParameters) -> TruthReference | None:
    """The planted elements of the dataset, which tell the kinds of elements, or None."""
    known = find_truth(parameters.dataset, masks=None)
    return read_truth(*known) if known else None


def redraw(
    parameters: TranslateParameters,
    sources: Sequence[Shard],
    model: ModelReference,
    labels: list[str],
    size: int,
    run: RunLedger,
) -> list[Shard]:
    """The shards of redrawn images, one for each of the sources."""
    root, options = parameters.root, parameters.translation_options(size)
    work = [
        Work(translation_unit(shard, model, labels, options), shard_name(shard), shard)
        for shard in sources
    ]

    def batch(shards: Sequence[Shard]) -> TranslateBatch:
        return TranslateBatch(
            root=open_root(root).url,
            dataset=parameters.dataset_name,
            shards=[asdict(shard) for shard in shards],
            model=asdict(model),
            targets=labels,
            options=options,
            batch_size=parameters.batch_size,
            device=parameters.device,
            precision=parameters.precision,
            allow=parameters.reached,
            max_image_mb=parameters.max_image_mb,
        )

    rows = [
        Row(
            one.unit.key,
            one.item.name,
            RUN_NAME.format(shard=one.item),
            one.item.images,
            {"labels": f"{one.item.images:,} images under {len(labels)} labels"},
        )
        for one in work
    ]
    batches = BatchFlow(translate_batch, batch, parameters.shards_per_batch)
    with run.stage("translation"):
        done = run.add(shown_fan_out(parameters, "shard", work, batches, rows))
    return [translated_shard(root, unit.key) for unit in done]


def pick_sequences(
    parameters: TranslateParameters,
    pairs: Sequence[Pair],
    labels: list[str],
    geometry: Geometry,
    run: RunLedger,
) -> list[str]:
    """The keys of the most co-typical places of each shard's images."""
    root, options = parameters.root, parameters.sequence_options(geometry.size, geometry.cell)
    work = [Work(cotypicality_unit(pair, labels, options), pair.name, pair) for pair in pairs]
    there = planned_there(root, COTYPICALITY, [one.unit.key for one in work])

    if missing := [one for one in work if one.unit.key not in there]:
        with run.stage("co-typicality"), Progress(COTYPICALITY, len(missing), "shards") as progress:

            def pick(pair: Pair) -> State[Done]:
                state = cotypicality(root, pair, labels, options, return_state=True)
                progress.advance()
                return state

            run.add(run_missing(missing, pick))
    return [one.unit.key for one in work]


def parallel_facts(
    parameters: TranslateParameters, sources: Sequence[Shard], size: int, notes: list[str]
) -> dict[str, Any]:
    """How the page was come by, for its readers."""
    return {
        "notes": notes,
        "dataset": {
            "name": parameters.dataset_name,
            **({"recipe": parameters.chosen_recipe().title} if parameters.recipe else {}),
            "images redrawn": sum(shard.images for shard in sources),
        },
        "translation": {
            "steps": parameters.steps,
            "timesteps between those of the inversion": parameters.inversion_stride,
            "start": parameters.start,
            "guidance": parameters.guidance,
        },
        **how_measured(parameters, size),
    }
