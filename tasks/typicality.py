"""Typicality of one dataset shard under one model: ragged Zarr maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from diffmining_core.images.shards import ShardImage, check_share
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.ledger import Attempt, read_manifests, read_table
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.typicality import ALGO
from tasks.index import Shard, good_images
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "typicality"
SET_ASIDE = "set_aside.parquet"
RUN_NAME = "typicality {shard.name}, {model.stage}"
"""Of a task run."""


def typicality_unit(content_id: str, model: ModelReference, options: dict[str, Any]) -> Unit:
    """The unit of one shard's content; `options` are `TypicalityOptions`' fields as JSON.

    The precision of the UNet is a fact of the unit and not part of its key: the rounding of
    bfloat16 moves a map by an eighth of its standard error, at any number of draws.
    """
    return Unit(STAGE, ALGO, (content_id, model.digest), options)


def wanted_unit(
    shard: Shard, model: ModelReference, options: dict[str, Any], there: set[str]
) -> Unit:
    """The unit to use for a shard, given the keys that are published.

    Maps made before some of its images left the dataset serve on; otherwise only those of the
    images that are left are made.
    """
    whole = typicality_unit(shard.indexed_id, model, options)
    return whole if whole.key in there else typicality_unit(shard.content_id, model, options)


@stage_task(STAGE, RUN_NAME)
def typicality(
    root: str,
    shard: Shard,
    model: ModelReference,
    options: dict[str, Any],
    device: Device,
    batch_size: int,
    max_bad_share: float,
) -> Done:
    """Compute and publish the maps of one shard.

    Images that nobody had opened before and that cannot be used are set aside; more than
    `max_bad_share` of them fail the shard.
    """

    def produce(attempt: Attempt) -> None:
        from diffmining_core.typicality.shard import (
            TypicalityOptions,
            rows_of_images,
            shard_typicality,
        )

        images = good_images(open_root(root), shard)
        distinct = len(rows_of_images(images))
        pipeline = loaded(root, model, device)
        before = pipeline.unet_forwards
        total = options["draws"] * (distinct + len(images))
        with Progress(f"typicality {shard.name}", total, "forwards") as progress:
            maps, set_aside = shard_typicality(
                pipeline,
                images,
                TypicalityOptions(
                    prompts=PromptTemplate.from_options(options),
                    size=options["size"],
                    draws=options["draws"],
                    t_range=(options["t_range"][0], options["t_range"][1]),
                    seed=options["seed"],
                    draws_seed=options.get("draws_seed"),
                    fixed=options.get("fixed"),
                ),
                batch_size,
                progress.advance,
            )
        bad = _set_aside_table(images, set_aside)
        check_share(bad.column("reason").to_pylist(), distinct, max_bad_share)
        measured = sorted(maps)
        write_maps(
            attempt,
            RaggedMaps.pack(
                [maps[place].mean for place in measured],
                [maps[place].m2 for place in measured],
                [maps[place].null_loss for place in measured],
                [images[place].image_id for place in measured],
                [images[place].label for place in measured],
                options["draws"],
            ),
        )
        if set_aside:
            attempt.write_table(SET_ASIDE, bad)
        attempt.counts["images"] = distinct - bad.num_rows
        attempt.counts["pairs"] = len(maps)
        attempt.counts["set_aside"] = bad.num_rows
        attempt.counts["unet_forwards"] = pipeline.unet_forwards - before
        attempt.facts["precision"] = device.dtype

    unit = typicality_unit(shard.content_id, model, options)
    return fill(root, unit, produce, device.name)


def _set_aside_table(images: Sequence[ShardImage], set_aside: Mapping[int, str]) -> pa.Table:
    """One row for each image that is set aside, whatever the number of its labels."""
    rows = {
        (image.image_id, image.uri): reason
        for image, reason in ((images[place], set_aside[place]) for place in sorted(set_aside))
    }
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "reason")])
    return pa.table(
        [[id for id, _ in rows], [uri for _, uri in rows], list(rows.values())], schema=schema
    )


def set_aside_count(root: str, dataset: Sequence[Shard], keys: Sequence[str]) -> int:
    """How many images measuring set aside; only shards with declared images can have some."""
    wanted = [key for shard, key in zip(dataset, keys, strict=True) if shard.declared]
    return sum(m.counts["set_aside"] for m in read_manifests(open_root(root), STAGE, wanted))


def set_aside_images(
    root: Root, dataset: Sequence[Shard], keys: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(uri, reason) of every image that measuring set aside."""
    wanted = [key for shard, key in zip(dataset, keys, strict=True) if shard.declared]
    for manifest in read_manifests(root, STAGE, wanted):
        if SET_ASIDE in manifest.files:
            table = read_table(root, manifest, SET_ASIDE)
            yield from zip(table["uri"].to_pylist(), table["reason"].to_pylist(), strict=True)
