"""Typicality of one dataset shard under one model: ragged Zarr maps."""

from __future__ import annotations

from typing import Any

from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from diffmining_core.typicality import ALGO
from tasks.index import Shard, good_images
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "typicality"


def typicality_unit(shard: Shard, model: ModelReference, options: dict[str, Any]) -> Unit:
    """The unit of one shard; `options` are `TypicalityOptions`' fields as JSON."""
    return Unit(STAGE, ALGO, (shard.content_id, model.digest), options)


@stage_task(STAGE, "typicality {shard.name}")
def typicality(
    root: str,
    shard: Shard,
    model: ModelReference,
    options: dict[str, Any],
    device: Device,
    batch_size: int,
) -> Done:
    """Compute and publish the maps of one shard."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

        images = good_images(open_root(root), shard)
        pipeline = loaded(root, model, device)
        before = pipeline.unet_forwards
        total = 2 * options["draws"] * len(images)
        with Progress(f"typicality {shard.name}", total, "forwards") as progress:
            maps = shard_typicality(
                pipeline,
                images,
                TypicalityOptions(
                    prompts=PromptTemplate(options["prompt"], options["null_prompt"]),
                    size=options["size"],
                    draws=options["draws"],
                    t_range=(options["t_range"][0], options["t_range"][1]),
                    seed=options["seed"],
                ),
                batch_size,
                progress.advance,
            )
        write_maps(
            attempt,
            RaggedMaps.pack(
                [mean for mean, _ in maps],
                [m2 for _, m2 in maps],
                [image.image_id for image in images],
                [image.label for image in images],
                options["draws"],
            ),
        )
        attempt.counts["images"] = len(images)
        attempt.counts["unet_forwards"] = pipeline.unet_forwards - before

    return fill(root, typicality_unit(shard, model, options), produce, device.name)
