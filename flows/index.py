"""Index a dataset into shards, ahead of mining it: what can be used, what is set aside and why."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.checks import check_dataset
from flows.parameters import IndexParameters
from tasks.finetune import dataset_counts
from tasks.index import dataset_shards, index


@flow(name="index", flow_run_name="index {parameters.dataset}", log_prints=True)
def index_dataset(parameters: IndexParameters) -> dict[str, Any]:
    """Read and check what is new in the dataset; returns the numbers of what it now holds."""
    check_dataset(parameters)
    units = index(
        parameters.root, parameters.dataset, parameters.shard_rows, parameters.max_bad_share
    )
    dataset = dataset_shards(parameters.root, units[-1].key)
    return {
        "images": sum(shard.images for shard in dataset),
        "set_aside": sum(shard.set_aside for shard in dataset),
        "declared": sum(shard.declared for shard in dataset),
        "shards": len(dataset),
        "indexed": sum(unit.computed for unit in units[:-1]),
        "labels": dataset_counts(dataset),
    }
