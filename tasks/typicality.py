"""Typicality of one dataset shard under one model: ragged Zarr maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from diffmining_core.errors import ImageError
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.shards import check_share
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.results.references import TYPICALITY, Shard
from diffmining_core.store.ledger import Attempt, finished, read_manifests, read_table
from diffmining_core.store.maps import RaggedMaps, read_maps, write_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.typicality import ALGO
from tasks.index import good_images
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

if TYPE_CHECKING:
    from diffmining_core.models.pipelines import Pipeline
    from diffmining_core.typicality.shard import RowMap, TypicalityOptions

STAGE = TYPICALITY
SET_ASIDE = "set_aside.parquet"
RUN_NAME = "typicality {shard.name}, {model.stage}"
"""Of a task run."""


@dataclass(frozen=True)
class Further:
    """That maps are measured further: those of the unit `maps`, and there what `plan` names."""

    maps: str
    plan: str


def typicality_unit(
    content_id: str,
    model: ModelReference,
    options: dict[str, Any],
    further: Further | None = None,
) -> Unit:
    """The unit of one shard's content; `options` are `TypicalityOptions`' fields as JSON.

    The precision of the UNet is a fact of the unit and not part of its key: the rounding of
    bfloat16 moves a map by an eighth of its standard error, at any number of draws.
    """
    before = (further.maps, further.plan) if further else ()
    return Unit(STAGE, ALGO, (content_id, model.digest, *before), options)


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
    further: Further | None = None,
) -> Done:
    """Compute and publish the maps of one shard, or those of its images that are undecided.

    Images that nobody had opened before and that cannot be used are set aside; more than
    `max_bad_share` of them fail the shard.
    """

    def produce(attempt: Attempt) -> None:
        images = good_images(open_root(root), shard)
        pipeline = loaded(root, model, device)
        before = pipeline.unet_forwards
        if further is None:
            _measure_all(attempt, shard, images, pipeline, options, batch_size, max_bad_share)
        else:
            _measure_further(attempt, root, shard, images, pipeline, options, batch_size, further)
        attempt.counts["unet_forwards"] = pipeline.unet_forwards - before
        attempt.facts["precision"] = device.dtype

    unit = typicality_unit(shard.content_id, model, options, further)
    return fill(root, unit, produce, device.name)


def _measure_all(
    attempt: Attempt,
    shard: Shard,
    images: Sequence[ShardImage],
    pipeline: Pipeline,
    options: dict[str, Any],
    batch_size: int,
    max_bad_share: float,
) -> None:
    """Every image, in one round or the first of several."""
    from diffmining_core.typicality.shard import rows_of_images, shard_typicality

    how = _how(options)
    distinct = len(rows_of_images(images))
    total = options["draws"] * (distinct + len(images))
    with Progress(f"typicality {shard.name}", total, "forwards") as progress:
        maps, set_aside = shard_typicality(pipeline, images, how, batch_size, progress.advance)
    bad = _set_aside_table(images, set_aside)
    check_share(bad.column("reason").to_pylist(), distinct, max_bad_share)
    write_maps(attempt, packed(images, maps, how))
    if set_aside:
        attempt.write_table(SET_ASIDE, bad)
    attempt.counts["images"] = distinct - bad.num_rows
    attempt.counts["pairs"] = len(maps)
    attempt.counts["set_aside"] = bad.num_rows


def _measure_further(
    attempt: Attempt,
    root: str,
    shard: Shard,
    images: Sequence[ShardImage],
    pipeline: Pipeline,
    options: dict[str, Any],
    batch_size: int,
    further: Further,
) -> None:
    """Those that the plan names, whatever number of draws each of them has had."""
    from diffmining_core.typicality.rounds import combined
    from diffmining_core.typicality.shard import rows_of_images, shard_typicality
    from tasks.refinement import undecided_rows

    opened = open_root(root)
    manifest = finished(opened, STAGE, further.maps)
    earlier = read_maps(opened, manifest)
    place = {row: i for i, row in enumerate(zip(earlier.image_id, earlier.label, strict=True))}
    wanted = undecided_rows(opened, further.plan, further.maps)
    by_draws: dict[int, list[ShardImage]] = defaultdict(list)
    for image in images:
        if (row := (image.image_id, image.label)) in wanted:
            by_draws[int(earlier.n_draws[place[row]])].append(image)
    by_draws = {had: some for had, some in by_draws.items() if had < options["draws"]}
    total = sum(
        (options["draws"] - had) * (len(rows_of_images(some)) + len(some))
        for had, some in by_draws.items()
    )
    measured = earlier.only([])
    with Progress(f"typicality {shard.name}", total, "forwards") as progress:
        for had, some in sorted(by_draws.items()):
            how = replace(_how(options), after=had)
            maps, unusable = shard_typicality(pipeline, some, how, batch_size, progress.advance)
            for reason in unusable.values():
                raise ImageError(reason)
            before = earlier.only([place[image.image_id, image.label] for image in some])
            more = packed(some, maps, how)
            measured = measured.followed_by(combined(before, more))
    write_maps(attempt, measured, before=further.maps)
    if SET_ASIDE in manifest.files:
        attempt.write_table(SET_ASIDE, read_table(opened, manifest, SET_ASIDE))
    for name in ("images", "pairs", "set_aside"):
        attempt.counts[name] = manifest.counts[name]


def _how(options: Mapping[str, Any]) -> TypicalityOptions:
    from diffmining_core.typicality.shard import TypicalityOptions

    names = ("draws_seed", "fixed", "spread", "window")
    return TypicalityOptions(
        prompts=PromptTemplate.from_options(options),
        size=options["size"],
        draws=options["draws"],
        t_range=(options["t_range"][0], options["t_range"][1]),
        seed=options["seed"],
        **{name: options[name] for name in names if name in options},
    )


def packed(
    images: Sequence[ShardImage], maps: Mapping[int, RowMap], how: TypicalityOptions
) -> RaggedMaps:
    """The maps of `shard_typicality`, in the order of the images, each over this round's draws."""
    from diffmining_core.typicality.draws import together

    places = sorted(maps)
    found = [maps[place] for place in places]
    windows = [one.window_m2 for one in found if one.window_m2 is not None]
    return RaggedMaps.pack(
        [one.mean for one in found],
        [one.m2 for one in found],
        [one.null_loss for one in found],
        [images[place].image_id for place in places],
        [images[place].label for place in places],
        how.draws - how.after,
        together(how.draws, how.fixed, how.spread),
        how.window or 0,
        None if how.window is None else windows,
    )


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
