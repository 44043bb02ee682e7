"""Patches of one shard's typicality maps: the highest, the lowest and random ones of each image."""

from __future__ import annotations

from typing import Any

from diffmining_core.patches.scoring import ALGO, shard_patches, too_small
from diffmining_core.store.ledger import Attempt, finished
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.units import Done, fill, stage_task

STAGE = "patches"
TABLE = "patches.parquet"


def patches_unit(typicality_key: str, options: dict[str, Any]) -> Unit:
    """The unit of one typicality unit's maps; `options` are size, per_image, seed and cell."""
    return Unit(STAGE, ALGO, (typicality_key,), options)


@stage_task(STAGE, "patches {typicality_key:.8}")
def patches(root: str, typicality_key: str, options: dict[str, Any]) -> Done:
    """Score and pick the patches of one shard."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        manifest = finished(opened, "typicality", typicality_key)
        maps = read_maps(opened, manifest)
        table = shard_patches(maps, **options)
        attempt.write_table(TABLE, table)
        attempt.counts["patches"] = table.num_rows
        attempt.counts["too_small"] = len(too_small(maps, options["cell"], options["size"]))

    return fill(root, patches_unit(typicality_key, options), produce)
