"""From maps to the top patches of each label, and back: more draws where the top is not decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffmining_core.patches.refinement import SHARE
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from diffmining_core.typicality.rounds import rounds
from flows.fan_out import planned_there
from flows.parameters import MineParameters
from flows.run_ledger import RunLedger
from flows.typicality import measure_further
from tasks.models import ModelReference
from tasks.patches import patches, patches_unit
from tasks.refinement import Decided, decided, measured_before, refine, refinement_unit
from tasks.selection import select, selection_unit


def pick_patches(
    parameters: MineParameters,
    typicality_keys: list[str],
    options: dict[str, Any],
    run: RunLedger,
    maps_stage: str = "typicality",
) -> dict[str, str]:
    """The keys of the patches of these maps, by the keys of the maps.

    maps_stage: whose maps these are, where they are not of typicality but of a baseline.
    """
    keys = {key: patches_unit(key, options).key for key in typicality_keys}
    there = planned_there(parameters.root, "patches", keys.values())
    if missing := [key for key in keys if keys[key] not in there]:
        workers = parameters.patch_workers
        run.add(patches(parameters.root, missing, options, workers, maps_stage))
    return keys


def choose(
    parameters: MineParameters, sides: Sequence[tuple[list[Shard], list[str]]], run: RunLedger
) -> list[str]:
    """The keys of the selections of each side: some shards, and the patches of each."""
    root, top, seed = parameters.root, parameters.top, parameters.seed
    keys = [selection_unit(shards, patches_keys, top, seed).key for shards, patches_keys in sides]
    plan_stage(open_root(root), "selection", keys)
    for shards, patches_keys in sides:
        run.add([select(root, shards, patches_keys, top, seed, parameters.patch_workers)])
    return keys


def measure_in_rounds(
    parameters: MineParameters,
    dataset: list[Shard],
    model: ModelReference,
    size: int,
    keys: list[str],
    patch_options: dict[str, Any],
    run: RunLedger,
) -> tuple[list[str], Decided]:
    """The keys of the maps after all rounds, given those after the first, and how sure the top is.

    Each round measures the images further of which a patch may still enter or leave its label's
    top. Every round's plan and maps are units, so that a run that was stopped goes on in its round;
    what earlier runs have measured further stays so when the dataset grows.
    """
    root, cell = parameters.root, patch_options["cell"]
    options = {**parameters.typicality_options(size), **parameters.first_round(size, cell)}
    keys = measured_before(root, dataset, model, options, keys)
    following = enumerate(rounds(parameters.draws)[1:], 1)
    while True:
        with run.stage("patches"):
            picked = pick_patches(parameters, keys, patch_options, run)
        with run.stage("selection"):
            patch_keys = [picked[key] for key in keys]
            (selection,) = choose(parameters, [(dataset, patch_keys)], run)
            unit = refinement_unit(selection, keys, cell, parameters.top)
            there = unit.key in published(open_root(root), unit.stage)
            place, draws = (0, None) if there else next(following, (0, None))
            if draws is not None:
                share = SHARE**place
                unit = refinement_unit(selection, keys, cell, parameters.top, draws, share)
            plan_stage(open_root(root), unit.stage, [unit.key])
            run.add([refine(root, selection, keys, patch_keys, unit.parameters)])
        plan = decided(root, unit.key)
        if draws is None:
            return keys, plan
        if plan.undecided:
            with run.stage("typicality"):
                keys = measure_further(
                    parameters,
                    dataset,
                    model,
                    size,
                    keys,
                    unit.key,
                    plan.undecided,
                    {**options, "draws": draws},
                    run,
                )
