"""Random patches of one dataset shard, as a table like those of patches that are found."""

from __future__ import annotations

from typing import Any

from diffmining_core.baselines.random_choice import ALGO, random_choice
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import patches
from tasks.index import good_images
from tasks.units import Done, fill, stage_task


def random_unit(shard: Shard, options: dict[str, Any]) -> Unit:
    """The unit of one shard, among those of `tasks.patches`.

    `options` are size (of the images), patch_size, per_image and seed.
    """
    return Unit(patches.STAGE, ALGO, (shard.content_id,), options)


@stage_task(patches.STAGE, "random patches {shard.name}")
def random_patches(root: str, shard: Shard, options: dict[str, Any]) -> Done:
    """Choose and publish the random patches of one shard."""

    def produce(attempt: Attempt) -> None:
        table = random_choice(good_images(open_root(root), shard), **options)
        attempt.write_table(patches.TABLE, table)
        attempt.counts["patches"] = table.num_rows

    return fill(root, random_unit(shard, options), produce)
