"""Index a dataset into shards, ahead of mining it: what can be used, what is set aside and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import flow

from diffmining_core.images.reach import set_reach
from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import CorruptFileError, finished
from diffmining_core.store.roots import open_root
from flows.checks import check_dataset
from flows.parameters import IndexParameters
from flows.run_ledger import RunLedger
from tasks.index import dataset_counts, dataset_shards, index
from tasks.units import CorruptUnitsError, Done


@flow(name="index", flow_run_name="index {parameters.title}", log_prints=True)
def index_dataset(parameters: IndexParameters) -> dict[str, Any]:
    """Read and check what is new in the dataset; returns the numbers of what it now holds.

    Those of the images that are mined; under `train` those of the others that a recipe trains on.
    A stored result that proves damaged where it is read is made anew, once each.
    """
    check_dataset(parameters)
    run = RunLedger()
    while True:
        try:
            return dataset_numbers(parameters)
        except CorruptFileError as error:
            run.repair(parameters.root, [error])
        except CorruptUnitsError as error:
            run.repair(parameters.root, error.damaged)


def dataset_numbers(parameters: IndexParameters) -> dict[str, Any]:
    """The numbers of all splits, once they are indexed."""
    recipe = parameters.chosen_recipe()
    if not recipe.trains_on_others:
        return split_numbers(parameters, MINED)
    return {**split_numbers(parameters, MINED), TRAIN: split_numbers(parameters, TRAIN)}


def split_numbers(parameters: IndexParameters, split: str) -> dict[str, Any]:
    """The numbers of one split, once it is indexed."""
    units, dataset = index_split(parameters, split)
    state = finished(open_root(parameters.root), units[-1].stage, units[-1].key)
    return {
        "listed": state.counts["listed"],
        "images": state.counts["images"],
        "pairs": state.counts["pairs"],
        "set_aside": state.counts["set_aside"],
        "set_aside_reasons": state.facts["set_aside"],
        "left_out": state.counts["left_out"],
        "left_out_reasons": state.facts["left_out"],
        "scaled": state.facts["scaled"],
        "declared": state.counts["declared"],
        "shards": len(dataset),
        "indexed": sum(unit.computed for unit in units[:-1]),
        "labels": dataset_counts(dataset),
    }


def index_split(
    parameters: IndexParameters, split: str, indexed: Callable[..., list[Done]] = index
) -> tuple[list[Done], list[Shard]]:
    """The units and shards of one split of the dataset, what is new in it read and published.

    indexed: the task, or its function where there is no server to tell of it.
    """
    set_reach(parameters.reached, parameters.max_image_mb)
    units = indexed(
        parameters.root,
        parameters.dataset,
        parameters.recipe,
        split,
        parameters.shard_rows,
        parameters.max_bad_share,
        parameters.allow,
    )
    return units, dataset_shards(parameters.root, units[-1].key, units[-1].stage)
