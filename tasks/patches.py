"""Patches of typicality maps, the highest, lowest and random ones of each image, and its mean."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from diffmining_core.patches.scoring import ALGO, image_typicality, shard_patches, too_small
from diffmining_core.store.ledger import Attempt, finished, published
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.progress import Progress
from tasks.units import Done, Failures, fill, stage_task

STAGE = "patches"
TABLE = "patches.parquet"
IMAGES_TABLE = "images.parquet"


def patches_unit(typicality_key: str, options: dict[str, Any]) -> Unit:
    """The unit of one typicality unit's maps; `options` are size, per_image, seed and cell."""
    return Unit(STAGE, ALGO, (typicality_key,), options)


@stage_task(STAGE)
def patches(
    root: str,
    typicality_keys: Sequence[str],
    options: dict[str, Any],
    workers: int = 0,
    maps_stage: str = "typicality",
) -> list[Done]:
    """Score and pick the patches of all shards, one `Done` for each of `typicality_keys`.

    maps_stage: whose maps these are, where they are not of typicality but of a baseline.
    Only units without a manifest are made, spread over `workers` processes, or threads if 0 (see
    `tasks.dask_client`). One that fails stops no other; the first is raised in the end.
    """
    from tasks.dask_client import dask_client, outcomes  # takes a second, which not all flows need

    opened = open_root(root)
    there = published(opened, STAGE)
    units = {key: patches_unit(key, options) for key in typicality_keys}
    done = {key: Done(STAGE, unit.key, computed=False) for key, unit in units.items()}
    missing = [key for key, unit in units.items() if unit.key not in there]
    # Several runs at one root share the work: each takes it in another order.
    random.SystemRandom().shuffle(missing)
    if missing:
        failures = Failures()
        # absolute: workers have folders of theirs
        work = partial(shard_unit, opened.url, options, maps_stage=maps_stage)
        with (
            dask_client(min(workers, len(missing))) as client,
            Progress(STAGE, len(missing), "shards") as progress,
        ):
            for key, outcome in outcomes(client, work, missing):
                if isinstance(outcome, Done):
                    done[key] = outcome
                else:
                    failures.add(units[key], outcome)
                progress.advance()
        failures.raise_for(len(units))
    return [done[key] for key in typicality_keys]


def shard_unit(
    root: str, options: dict[str, Any], typicality_key: str, maps_stage: str = "typicality"
) -> Done:
    """Score, pick and publish the patches of one typicality unit, in the thread that calls."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        maps = read_maps(opened, finished(opened, maps_stage, typicality_key))
        table = shard_patches(maps, **options)
        attempt.write_table(TABLE, table)
        attempt.write_table(IMAGES_TABLE, image_typicality(maps))
        attempt.counts["maps"] = len(maps.image_id)
        attempt.counts["patches"] = table.num_rows
        attempt.counts["too_small"] = len(too_small(maps, options["cell"], options["size"]))

    return fill(root, patches_unit(typicality_key, options), produce)
