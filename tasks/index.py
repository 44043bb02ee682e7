"""Index a dataset into shards: what is new since the last time is read, checked and published."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.images import shards
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.shards import FoundImage, IndexPlan, KeptShard, KnownShard
from diffmining_core.images.sources import open_source
from diffmining_core.images.tally import Reason, Tally
from diffmining_core.recipes import TRAIN, Recipe, load_recipe, plain_recipe
from diffmining_core.results.references import SHARD_TABLE, Shard
from diffmining_core.store.ledger import (
    Attempt,
    Manifest,
    finished,
    published,
    read_manifest,
    read_manifests,
    read_table,
    retract,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import plan_stage
from diffmining_core.store.units import Unit
from tasks.progress import Progress
from tasks.units import Done, Failures, fill, noted, stage_task

STAGE, TRAIN_STAGE = "index", "index_train"
"""The second where a recipe trains on other images than are mined."""
PUBLISHERS = 8
"""Shards that are published while the next are read: storage elsewhere answers slowly."""
TABLE = SHARD_TABLE

DATASET_STAGE = "dataset"
DATASET_ALGO = "dataset-3"
DATASET_TABLE = "shards.parquet"
DATASET_STAGES = {STAGE: DATASET_STAGE, TRAIN_STAGE: "dataset_train"}
"""Of the states of the dataset, by that of its shards."""

DATASET_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the shard's index unit
        ("indexed_id", pa.string()),  # content id of all rows of its table
        ("content_id", pa.string()),  # content id of the rows that still belong to the dataset
        ("dropped", pa.list_(pa.int32())),  # numbers of the rows that do not
        ("images", pa.int32()),  # good images
        ("labels", pa.string()),  # JSON: good images per label
        ("details_id", pa.string()),  # of the details of the rows that still belong
        ("set_aside", pa.int32()),  # images that cannot be used
        ("declared", pa.int32()),  # good images that nobody has opened yet
        ("rows", pa.int32()),  # images under each of their labels, good and set aside
    ]
)

COUNTS = ("images", "set_aside", "declared", "rows")
"""What is counted of a shard, and summed over the dataset."""
DATASET_COUNTS = ("shards", "pairs", "left_out", "rows_set_aside", "listed")
"""What is counted of the dataset beside those."""


def index_stage(recipe: Recipe, split: str) -> str:
    """The stage that has the shards of a split."""
    return TRAIN_STAGE if split == TRAIN and recipe.trains_on_others else STAGE


def index_unit(found: Sequence[FoundImage], stage: str = STAGE) -> Unit:
    """The unit of one shard: these images as they were found, in this order."""
    digest = hashlib.sha256()
    for image in found:
        digest.update(repr(image).encode() + b"\n")
    return Unit(stage, shards.ALGO, (), {"files": digest.hexdigest()})


def corrected_unit(kept: KeptShard, stage: str) -> Unit:
    """The unit of a shard whose images have other notes than when it was indexed."""
    digest = hashlib.sha256(repr(kept.corrected).encode()).hexdigest()
    return Unit(stage, shards.ALGO, (kept.key,), {"notes": digest})


def dataset_unit(source_digest: str, known: set[str], stage: str = STAGE) -> Unit:
    """The unit of one state of the dataset, cut into shards of which `known` are indexed."""
    keys = hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()
    return Unit(DATASET_STAGES[stage], DATASET_ALGO, (source_digest, keys), {})


@stage_task(STAGE)
def index(
    root: str,
    dataset: str,
    recipe: str | None,
    split: str,
    shard_rows: int,
    max_bad_share: float,
    allow: Sequence[str] = (),
) -> list[Done]:
    """Index what is new in a split of the dataset; the last unit says which shards it now has.

    recipe: its name or path. allow: places beside the dataset's own that it may reach. Nothing is
    read if nothing has changed. A shard with too many bad images stops no other; the first such
    error is raised at the end.
    """
    opened = open_root(root)
    chosen = load_recipe(recipe) if recipe else plain_recipe()
    stage = index_stage(chosen, split)
    source = open_source(dataset, chosen.layout(split), allow)
    known = published(opened, stage)
    unit = dataset_unit(source.digest, known, stage)
    if manifest := read_manifest(opened, unit.stage, unit.key):
        if _tells_all(manifest):
            return [Done(unit.stage, unit.key, False, manifest.seconds, dict(manifest.counts))]
        retract(opened, unit.stage, unit.key)

    plan = source.plan(known_shards(opened, stage), shard_rows)
    done = _index_new(root, stage, plan, known, max_bad_share)
    kept = [*plan.keep, *(KeptShard(unit.key, ()) for unit in done)]
    for place, shard in enumerate(kept):
        if shard.corrected:
            unit = corrected_unit(shard, stage)
            done.append(fill(root, unit, partial(_write_corrected, opened, stage, shard)))
            kept[place] = KeptShard(unit.key, shard.dropped)
    plan_stage(opened, stage, [shard.key for shard in kept])
    # Another process may have indexed some between the listing and the reading: those are kept too.
    unit = dataset_unit(source.digest, known | {shard.key for shard in kept}, stage)
    plan_stage(opened, unit.stage, [unit.key])
    write = partial(_write_dataset, opened, stage, kept, plan.left_out)
    return [*done, fill(root, unit, write)]


def _index_new(
    root: str, stage: str, plan: IndexPlan, known: set[str], max_bad_share: float
) -> list[Done]:
    """Read, check and publish the new shards of a plan; `known`: keys of those indexed already."""
    opened = open_root(root)
    done: list[Done] = []
    failures = Failures()
    publishing: deque[tuple[Unit, Future[Done]]] = deque()

    def settle() -> None:
        unit, future = publishing.popleft()
        with failures.of(unit):
            done.append(future.result())

    with (
        tempfile.TemporaryDirectory() as aside,
        Progress(stage, plan.images, "images") as progress,
        ThreadPoolExecutor(PUBLISHERS) as pool,
    ):
        for new in plan.new:
            unit = index_unit(new.images, stage)
            if unit.key in known:  # of a file of which not all pieces are
                done.append(Done(stage, unit.key, computed=False))
                progress.advance(len(new.images))
                continue
            with failures.of(unit), noted(opened, unit):
                images = Path(aside) / f"{unit.key}.parquet"
                table = shards.index_shard(new.images, progress.advance, shards.KeptImages(images))
                shards.check_set_aside(table, max_bad_share)
                write = partial(_write_shard, new.part, new.left_out, table, images)
                publishing.append((unit, pool.submit(fill, root, unit, write)))
            if len(publishing) > PUBLISHERS:
                settle()
        while publishing:
            settle()
    failures.raise_for(len(done) + len(failures))
    return done


@dataclass(frozen=True)
class Listing:
    """What the source of a dataset lists, by its digest; shards: None where it was not indexed."""

    digest: str
    shards: tuple[Shard, ...] | None


def listing(
    root: str, dataset: str, recipe: str | None, split: str, allow: Sequence[str] = ()
) -> Listing:
    """A split of the dataset as it is listed now; no image is read and nothing is published."""
    opened = open_root(root)
    chosen = load_recipe(recipe) if recipe else plain_recipe()
    stage = index_stage(chosen, split)
    source = open_source(dataset, chosen.layout(split), allow)
    unit = dataset_unit(source.digest, published(opened, stage), stage)
    if read_manifest(opened, unit.stage, unit.key) is None:
        return Listing(source.digest, None)
    return Listing(source.digest, tuple(dataset_shards(root, unit.key, unit.stage)))


def _write_shard(
    part: str | None, left_out: Tally, table: pa.Table, images: Path, attempt: Attempt
) -> None:
    """Fill the unit of a shard; the local file of images that it keeps, if there is one, goes."""
    attempt.write_table(TABLE, table)
    if images.exists():
        attempt.write_file(shards.KEPT_FILE, images)
        images.unlink()
    attempt.counts.update(_counts(table))
    attempt.facts["part"] = part
    attempt.facts["content_id"] = shards.shard_content_id(table)
    attempt.facts["details_id"] = shards.details_id(table)
    attempt.facts["labels"] = label_counts(shards.good(table))
    for what, of_table in TALLIES.items():
        attempt.facts[what] = of_table(table).as_json()
    attempt.facts["left_out"] = left_out.as_json()


def _write_corrected(root: Root, stage: str, kept: KeptShard, attempt: Attempt) -> None:
    before = finished(root, stage, kept.key)
    table = shards.with_notes(read_table(root, before, TABLE), kept.corrected)
    with tempfile.TemporaryDirectory() as aside:
        images = Path(aside) / shards.KEPT_FILE
        if shards.KEPT_FILE in before.files:
            with images.open("wb") as file:
                file.writelines(root.blocks(f"{before.attempt}/{shards.KEPT_FILE}"))
        _write_shard(None, Tally(), table, images, attempt)


def _counts(table: pa.Table) -> dict[str, int]:
    """Images of a shard, whatever the number of their labels: good, set aside, good unopened."""
    good = shards.good(table)
    images = _images(good)
    declared = _images(good.filter(good.column("declared")))
    aside = _images(table) - images
    return {"images": images, "set_aside": aside, "declared": declared, "rows": table.num_rows}


def _set_aside_reasons(table: pa.Table) -> Tally:
    """The rows of a shard that cannot be used, by reason."""
    bad = table.filter(pc.is_valid(table.column("set_aside")))
    columns = (bad.column(name).to_pylist() for name in ("uri", "set_aside"))
    return Tally.of(zip(*columns, strict=True))


def _scaled(table: pa.Table) -> Tally:
    """The images of a shard whose greys were scaled by their own range."""
    names = (shards.column(table, name).to_pylist() for name in ("uri", "scaled_bits"))
    return Tally.of(
        (uri, f"greys of {bits} bits in a file of 16, scaled by their own range")
        for uri, bits in dict(zip(*names, strict=True)).items()
        if bits is not None
    )


TALLIES: Mapping[str, Callable[[pa.Table], Tally]] = {
    "set_aside": _set_aside_reasons,
    "scaled": _scaled,
}
"""What is noted, with names, on the rows of each shard and of the dataset."""


def _images(table: pa.Table) -> int:
    return int(pc.count_distinct(table.column("uri")).as_py())


def label_counts(good: pa.Table) -> dict[str, int]:
    """Rows of a table of good images by their label."""
    counted = good.column("label").value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in counted}


def _write_dataset(
    root: Root,
    stage: str,
    kept: Sequence[KeptShard],
    left_out: Tally,
    attempt: Attempt,
) -> None:
    manifests = {manifest.key: manifest for manifest in read_manifests(root, stage)}
    rows, noted_on = [], {what: Tally() for what in TALLIES}
    for shard in kept:
        manifest = manifests[shard.key]
        rows.append(_dataset_row(root, manifest, shard.dropped))
        for what, tally in noted_on.items():
            tally.update(_reasons_of(root, manifest, shard.dropped, what))
        left_out.update(manifest.facts["left_out"])
    # By content, so that neither the folder's place nor the order of arrival decides anything.
    rows.sort(key=lambda row: (row["content_id"], row["key"]))
    attempt.write_table(DATASET_TABLE, pa.Table.from_pylist(rows, schema=DATASET_SCHEMA))
    attempt.counts["shards"] = len(rows)
    attempt.counts["pairs"] = sum(sum(json.loads(row["labels"]).values()) for row in rows)
    for name in COUNTS:
        attempt.counts[name] = sum(row[name] for row in rows)
    attempt.counts["left_out"] = left_out.counts.total()
    attempt.counts["rows_set_aside"] = noted_on["set_aside"].counts.total()
    # Every row of the source is a usable image under a label, set aside, or left out.
    attempt.counts["listed"] = attempt.counts["rows"] + attempt.counts["left_out"]
    attempt.facts |= {what: tally.as_json() for what, tally in noted_on.items()}
    attempt.facts["left_out"] = left_out.as_json()


def _tells_all(manifest: Manifest) -> bool:
    """Whether the manifest of a state of the dataset has what `_write_dataset` put there."""
    try:
        for what in (*TALLIES, "left_out"):
            Tally().update(cast("Mapping[str, Reason]", manifest.facts[what]))
    except (AttributeError, KeyError, TypeError):
        return False
    return manifest.counts.keys() >= {*COUNTS, *DATASET_COUNTS}


def _reasons_of(
    root: Root, manifest: Manifest, dropped: Sequence[int], what: str
) -> Mapping[str, Reason]:
    """What is noted on the rows of a shard that still belong to the dataset."""
    if not dropped:
        return cast("Mapping[str, Reason]", manifest.facts[what])
    return TALLIES[what](_without(read_table(root, manifest, TABLE), dropped)).as_json()


def _dataset_row(root: Root, manifest: Manifest, dropped: Sequence[int]) -> dict[str, Any]:
    names = ("content_id", "details_id", "labels")
    content_id, details_id, labels = (manifest.facts[name] for name in names)
    row = {"key": manifest.key, "indexed_id": content_id, "dropped": list(dropped)}
    counts = {name: manifest.counts[name] for name in COUNTS}
    if dropped:
        live = _without(read_table(root, manifest, TABLE), dropped)
        content_id, details_id = shards.shard_content_id(live), shards.details_id(live)
        labels, counts = label_counts(shards.good(live)), _counts(live)
    return row | {
        "content_id": content_id,
        "details_id": details_id,
        "labels": json.dumps(labels, sort_keys=True),
        **counts,
    }


def known_shards(root: Root, stage: str = STAGE) -> list[KnownShard]:
    """All shards ever indexed at this root; their tables are read only when asked for."""
    return [
        KnownShard(
            key=manifest.key,
            part=manifest.facts["part"],
            rows=partial(read_table, root, manifest, TABLE),
        )
        for manifest in read_manifests(root, stage)
        if manifest.algo == shards.ALGO  # the tables of another are of another form
    ]


def dataset_shards(root: str, key: str, stage: str = DATASET_STAGE) -> list[Shard]:
    """The shards of a published state of the dataset, by content."""
    opened = open_root(root)
    table = read_table(opened, finished(opened, stage, key), DATASET_TABLE)
    (of_shards,) = (name for name, of_states in DATASET_STAGES.items() if of_states == stage)
    return [_shard(row, of_shards) for row in table.to_pylist()]


def _shard(row: Mapping[str, Any], stage: str) -> Shard:
    """The shard of a row of DATASET_SCHEMA."""
    return Shard(
        key=row["key"],
        indexed_id=row["indexed_id"],
        content_id=row["content_id"],
        dropped=tuple(row["dropped"]),
        images=row["images"],
        labels=tuple(sorted(json.loads(row["labels"]).items())),
        set_aside=row["set_aside"],
        declared=row["declared"],
        details_id=row["details_id"],
        stage=stage,
    )


def part_of(root: Root, shard: Shard, wanted: Sequence[ShardImage]) -> Shard:
    """The shard without its good images that are not wanted; itself where all are."""
    manifest = finished(root, shard.stage, shard.key)
    table = read_table(root, manifest, TABLE)
    kept = {(image.uri, image.label) for image in wanted}
    places = shards.places_of(table, root.url_of(manifest.attempt))
    columns = (table.column(name).to_pylist() for name in ("label", "set_aside"))
    unwanted = {
        row
        for row, (place, label, reason) in enumerate(zip(places, *columns, strict=True))
        if reason is None and (place, label) not in kept
    }
    dropped = sorted(unwanted.union(shard.dropped))
    return _shard(_dataset_row(root, manifest, dropped), shard.stage)


def dataset_counts(dataset: Sequence[Shard]) -> dict[str, int]:
    """Good images per label over all shards."""
    counts: dict[str, int] = {}
    for shard in dataset:
        for label, count in shard.labels:
            counts[label] = counts.get(label, 0) + count
    return counts


def shard_table(root: Root, shard: Shard) -> pa.Table:
    """The rows of a shard that belong to the dataset, those set aside too."""
    manifest = finished(root, shard.stage, shard.key)
    return _without(read_table(root, manifest, TABLE), shard.dropped)


def _without(table: pa.Table, dropped: Sequence[int]) -> pa.Table:
    gone = set(dropped)
    return table.take([row for row in range(table.num_rows) if row not in gone]) if gone else table


def good_images(root: Root, shard: Shard) -> list[ShardImage]:
    """The images of a shard that were not set aside, by their full addresses."""
    manifest = finished(root, shard.stage, shard.key)
    table = _without(read_table(root, manifest, TABLE), shard.dropped)
    return shards.images_of(shards.good(table), root.url_of(manifest.attempt))


def set_aside_rows(root: Root, dataset: Sequence[Shard]) -> Iterator[tuple[str, str]]:
    """(uri, reason) of every image that indexing set aside."""
    for shard in dataset:
        if not shard.set_aside:
            continue
        table = shard_table(root, shard)
        rows = zip(
            table.column("uri").to_pylist(), table.column("set_aside").to_pylist(), strict=True
        )
        # Its rows lie side by side, and all have the same reason.
        for row, _ in groupby(rows):
            if row[1] is not None:
                yield row
