"""The study of generated images: what the model makes of a label, mined beside the real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from diffmining_core.results.references import Shard
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.embed import embed
from flows.fan_out import Work, planned_there, run_missing
from flows.parameters import GeneratedStudyParameters
from flows.run_ledger import RunLedger
from flows.selection import choose, pick_patches
from flows.study.prepared import Prepared, announce, check, prepare, study_facts
from flows.typicality import measure
from tasks.generated import STAGE, generate, generated_shard, generated_unit
from tasks.index import dataset_counts
from tasks.models import choose_device
from tasks.report import publish_page
from tasks.selection import kind_digests
from tasks.study_generated import GeneratedAsked, MinedImages, study_generated
from tasks.study_sides import studied_numbers
from tasks.units import Done

REAL = "real"


@flow(name="study generated", flow_run_name="study generated {parameters.title}", log_prints=True)
def study_of_generated(parameters: GeneratedStudyParameters) -> dict[str, Any]:
    """Generate images of each label at each guidance scale, mine them, and compare.

    Returns the numbers of the page `study-generated.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    prepared = prepare(parameters, run)
    size = prepared.geometry.size
    datasets: dict[str, list[Shard]] = {REAL: prepared.dataset}
    scales: dict[str, float | None] = {REAL: None}
    with run.stage("generated"):
        for scale in dict.fromkeys(parameters.guidance):
            name = f"guidance {scale:g}"
            scales[name] = scale
            datasets[name] = generated_shards(parameters, prepared, scale, run)
    mined = mine_datasets(parameters, prepared, datasets, scales, run)
    with run.stage("study"):
        asked = GeneratedAsked(
            title=f"Generated images of {parameters.dataset_name}",
            mined=tuple(mined),
            seed=parameters.seed,
            size=size,
            facts={
                **study_facts(parameters, prepared),
                "generated": {
                    "of each label and scale": parameters.images,
                    "steps of DDIM": parameters.sampling_steps,
                    "guidance scales": list(dict.fromkeys(parameters.guidance)),
                },
            },
        )
        plan_stage(open_root(root), asked.unit.stage, [asked.unit.key])
        (done,) = run.add([study_generated(root, asked)])
        page = publish_page(root, done.key, asked.unit.stage, "study-generated.html")
    found = studied_numbers(root, done.key)
    announce(parameters, "generated", found["table"], page)
    return {**found, **run.summary(), "page": page}


def generated_shards(
    parameters: GeneratedStudyParameters, prepared: Prepared, scale: float, run: RunLedger
) -> list[Shard]:
    """The images of every label at one guidance scale, a shard each, made where they are not."""
    root, model = parameters.root, prepared.model
    size = prepared.geometry.size
    work = []
    for label in sorted(dataset_counts(prepared.dataset)):
        options = parameters.generation_options(label, scale, size)
        name = f"{label} at guidance {scale:g}"
        work.append(Work(generated_unit(model, options), name, options))
    there = planned_there(root, STAGE, [one.unit.key for one in work])

    def made(options: dict[str, Any]) -> State[Done]:
        device = choose_device(parameters.device, parameters.precision)
        return generate(root, model, options, device, return_state=True)

    run.add(run_missing([one for one in work if one.unit.key not in there], made))
    return [generated_shard(root, one.unit.key) for one in work]


def mine_datasets(
    parameters: GeneratedStudyParameters,
    prepared: Prepared,
    datasets: Mapping[str, list[Shard]],
    scales: Mapping[str, float | None],
    run: RunLedger,
) -> list[MinedImages]:
    """Maps, patches, selection and features of each dataset, by its name."""
    size, cell, model = prepared.geometry.size, prepared.geometry.cell, prepared.model
    sides = {name: (dataset, model) for name, dataset in datasets.items()}
    keys = measure(parameters, sides, size, run)
    with run.stage("patches"):
        options = parameters.patch_options(size, cell)
        every = list(dict.fromkeys(key for of_side in keys for key in of_side))
        picked = pick_patches(parameters, every, options, run)
    with run.stage("selection"):
        chosen_from = [
            (dataset, [picked[key] for key in of_side])
            for dataset, of_side in zip(datasets.values(), keys, strict=True)
        ]
        selections = choose(parameters, chosen_from, run)
    mined = []
    for (name, dataset), of_side, selection in zip(datasets.items(), keys, selections, strict=True):
        with run.stage(f"features of {name}"):
            # Not under the label's own prompt, which would tell it.
            changes = {"kind": "highest", "first": parameters.patches, "unlabelled": True}
            digests = kind_digests(parameters.root, selection, "highest", parameters.patches)
            features = embed(parameters, selection, digests, model, size, run, changes)
        mined.append(
            MinedImages(
                name,
                scales[name],
                tuple(dataset),
                tuple(of_side),
                selection,
                tuple(features.items()),
            )
        )
    return mined
