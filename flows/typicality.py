"""Measure typicality by itself: maps of every shard of a dataset, with no page made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field

from diffmining_core.images.reach import DEFAULT_MAX_IMAGE_MB, set_reach
from diffmining_core.recipes import MINED
from diffmining_core.report.shown_addresses import without_paths
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.checks import check_inputs
from flows.fan_out import BatchFlow, Work, decided, fan_out, root_tag, run_missing, shown_fan_out
from flows.finetune import finetune_model, image_geometry, trained_shards
from flows.index import index_split
from flows.parameters import (
    AllowedPlaces,
    DeviceName,
    MaxImageMb,
    Precision,
    TypicalityParameters,
    run_title,
)
from flows.run_ledger import RunLedger
from tasks.board import Board, Row
from tasks.models import ModelReference, choose_device
from tasks.typical import TypicalSoFar
from tasks.typicality import (
    RUN_NAME,
    STAGE,
    Further,
    set_aside_count,
    typicality_unit,
    wanted_unit,
)
from tasks.typicality import typicality as typicality_task
from tasks.units import Done

SPREADS = {
    "paired": "paired: opposite noise, timesteps spread evenly",
    "independent": "independent, as in the paper",
}
"""What a page says of them."""


class TypicalityBatch(BaseModel):
    """A few dataset shards to measure under one model, as the flows that measure write them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[str, Field(description="Folder or URL for the results.")]
    dataset: Annotated[str, Field(description="What a person calls the dataset.")]
    shards: Annotated[
        list[dict[str, Any]],
        Field(description="References of the shards to measure.", min_length=1),
    ]
    model: Annotated[dict[str, Any], Field(description="Reference of the model.")]
    options: Annotated[
        dict[str, Any],
        Field(
            description="What decides a map: prompts, size, draws and their spread, range, seed."
        ),
    ]
    batch_size: Annotated[
        int, Field(ge=0, description="Images measured together; 0 for what the device does best.")
    ] = 0
    max_bad_share: Annotated[
        float,
        Field(ge=0, le=1, description="Share of unusable images from which a shard fails."),
    ] = 0.25
    device: DeviceName = "auto"
    precision: Precision = "auto"
    allow: AllowedPlaces = ()
    max_image_mb: MaxImageMb = DEFAULT_MAX_IMAGE_MB
    before: Annotated[
        list[str],
        Field(
            description="Keys of the maps that are measured further, one for each shard; none in a "
            "first round."
        ),
    ] = []
    plan: Annotated[
        str | None, Field(description="Key of the plan that names the images to measure further.")
    ] = None

    @property
    def title(self) -> str:
        """What the run is about."""
        model = ModelReference.from_json(self.model)
        first, more = Shard.from_json(self.shards[0]).name, len(self.shards) - 1
        shards = f"shard {first}" + (f" and {more} more" if more else "")
        return f"{run_title(self.dataset, self.root)}: {shards}, {model.stage}"

    @property
    def further(self) -> list[Further | None]:
        """For each shard, what it is measured further for; None for nothing but itself."""
        if self.plan is None:
            return [None] * len(self.shards)
        return [Further(maps, self.plan) for maps in self.before]


@flow(
    name="typicality-batch",
    flow_run_name="typicality {parameters.title}",
    log_prints=True,
    persist_result=False,
)
def typicality_batch(parameters: TypicalityBatch) -> list[Done]:
    """Measure a few shards one after the other, with one model in memory."""
    set_reach(parameters.allow, parameters.max_image_mb)
    model = ModelReference.from_json(parameters.model)
    shards = [Shard.from_json(shard) for shard in parameters.shards]
    work = [
        Work(
            typicality_unit(shard.content_id, model, parameters.options, further),
            shard_name(shard),
            (shard, further),
        )
        for shard, further in zip(shards, parameters.further, strict=True)
    ]

    def measure_shard(item: tuple[Shard, Further | None]) -> State[Done]:
        shard, further = item
        return typicality_task(
            parameters.root,
            shard,
            model,
            parameters.options,
            choose_device(parameters.device, parameters.precision),
            parameters.batch_size,
            parameters.max_bad_share,
            further,
            return_state=True,
        )

    return run_missing(work, measure_shard)


@flow(name="typicality", flow_run_name="typicality {parameters.title}", log_prints=True)
def typicality(parameters: TypicalityParameters) -> dict[str, Any]:
    """Index, finetune or take the model that is there, and measure every shard.

    Returns the summary: the keys of the maps by shard, images, set aside, the run's cost.
    """
    run = RunLedger()
    check_inputs(parameters)
    with run.stage("index"):
        units, dataset = index_split(parameters, MINED)
        run.add(units)
        trained = trained_shards(parameters, dataset, run)
        size = image_geometry(parameters).size
    with run.stage("finetune"):
        model, notes = finetune_model(parameters, trained, size, run)
    for note in notes:
        get_run_logger().warning(note)
    (keys,) = measure(parameters, {STAGE: (dataset, model)}, size, run)
    unusable = set_aside_count(parameters.root, dataset, keys)
    return {
        **run.summary(),
        "images": sum(shard.images for shard in dataset) - unusable,
        "set_aside": sum(shard.set_aside for shard in dataset) + unusable,
        "maps": {shard.name: key for shard, key in zip(dataset, keys, strict=True)},
        "notes": notes,
    }


def measure(
    parameters: TypicalityParameters,
    sides: Mapping[str, tuple[Sequence[Shard], ModelReference]],
    size: int,
    run: RunLedger,
    patch_options: dict[str, Any] | None = None,
    changes: Mapping[str, dict[str, Any]] | None = None,
) -> list[list[str]]:
    """The keys of the maps of each side: some shards under one model, by the name of its time.

    patch_options: of the patches of the first side, to show the highest meanwhile; None for none.
    changes: what of a side's options is not as the parameters say, by the side's name.
    """
    root, as_set = parameters.root, parameters.typicality_options(size)
    options = {name: {**as_set, **(changes or {}).get(name, {})} for name in sides}
    there = published(open_root(root), STAGE)
    work = {
        name: [
            Work(wanted_unit(shard, model, options[name], there), shard_name(shard), shard)
            for shard in shards
        ]
        for name, (shards, model) in sides.items()
    }
    plan_stage(open_root(root), STAGE, [one.unit.key for works in work.values() for one in works])
    typical = None
    if patch_options:
        first = {one.unit.key: one.item for one in next(iter(work.values()))}
        typical = TypicalSoFar(root, first, patch_options, size)
    rows = [
        _row(one.unit.key, one.item, sides[name][1])
        for name, works in work.items()
        for one in works
    ]
    measured = []
    try:
        with Board(root, STAGE, "shard", parameters.title, root_tag(root), rows, there, typical):
            for name, works in work.items():
                batch = BatchFlow(
                    typicality_batch,
                    partial(_batch, parameters, model=sides[name][1], options=options[name]),
                    parameters.shards_per_batch,
                )
                with run.stage(name):
                    done = fan_out(root, works, there, batch, decided(parameters.fanout))
                    measured.append([unit.key for unit in run.add(done)])
    finally:
        run.add(typical.made if typical else [])
    return measured


def measure_further(
    parameters: TypicalityParameters,
    dataset: Sequence[Shard],
    model: ModelReference,
    size: int,
    keys: Sequence[str],
    plan: str,
    undecided: Collection[str],
    changes: dict[str, Any],
    run: RunLedger,
) -> list[str]:
    """The keys of every shard's maps once those `undecided`, by their keys, are measured further.

    plan: the unit that names their images; changes: what of the options is not as the parameters
    say, among it how many draws these images have in the end.
    """
    options = {**parameters.typicality_options(size), **changes}
    shards = {key: shard for key, shard in zip(keys, dataset, strict=True) if key in undecided}
    work = [
        Work(
            typicality_unit(shard.content_id, model, options, Further(key, plan)),
            shard_name(shard),
            (shard, key),
        )
        for key, shard in shards.items()
    ]

    def batch(some: Sequence[tuple[Shard, str]]) -> TypicalityBatch:
        first = _batch(parameters, [shard for shard, _ in some], model, options)
        return first.model_copy(update={"before": [key for _, key in some], "plan": plan})

    flow_of = BatchFlow(typicality_batch, batch, parameters.shards_per_batch)
    rows = [_row(one.unit.key, one.item[0], model) for one in work]
    done = run.add(shown_fan_out(parameters, "shard", work, flow_of, rows))
    anew = dict(zip(shards, (unit.key for unit in done), strict=True))
    return [anew.get(key, key) for key in keys]


def _row(key: str, shard: Shard, model: ModelReference) -> Row:
    largest = sorted(shard.labels, key=lambda label: -label[1])
    labels = ", ".join(f"{label} {count:,}" for label, count in largest[:3])
    more = len(largest) - 3
    about = {"model": model.stage, "labels": labels + (f" and {more:,} more" if more > 0 else "")}
    task_run = RUN_NAME.format(shard=shard, model=model)
    return Row(key, shard.name, task_run, shard.images, about)


def _batch(
    parameters: TypicalityParameters,
    shards: Sequence[Shard],
    model: ModelReference,
    options: dict[str, Any],
) -> TypicalityBatch:
    return TypicalityBatch(
        root=open_root(parameters.root).url,
        dataset=parameters.dataset_name,
        shards=[asdict(shard) for shard in shards],
        model=asdict(model),
        options=options,
        batch_size=parameters.batch_size,
        max_bad_share=parameters.max_bad_share,
        device=parameters.device,
        precision=parameters.precision,
        allow=parameters.reached,
        max_image_mb=parameters.max_image_mb,
    )


def how_measured(parameters: TypicalityParameters, size: int) -> dict[str, Any]:
    """How maps of images of this size are come by, for the readers of a page."""
    settings = parameters.settings()
    return {
        "model": {
            "base": without_paths(parameters.model),
            "prompt": settings.prompts.conditioned,
            "null prompt": settings.prompts.null or "(empty)",
            "finetuning steps": settings.finetune_steps,
            "image size": f"{size} px",
        },
        "typicality": {
            "draws": parameters.draws,
            "spread of draws": SPREADS[parameters.draws_spread],
            "timesteps": "{} to {}".format(*settings.t_range),
            "seed": parameters.seed,
        },
    }


def shard_name(shard: Shard) -> str:
    """What messages call a shard."""
    return f"shard {shard.name}"
