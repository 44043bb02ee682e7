"""The digest of one night: what the results at a root have that they had not the night before.

In: the report that is shown now, and the one of the night before. Out: a unit with the numbers,
and the pictures of clusters that entered; the pages at `nights/` are drawn from these units, and
can be drawn anew. Nights build on each other: each unit names the one before among its inputs.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from diffmining_core.clusters.changes import ClusterChange, cluster_changes
from diffmining_core.clusters.kmeans import CLUSTER_SCHEMA
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.digest import (
    Digest,
    LabelChanges,
    NightRow,
    ShownCluster,
    Work,
    markdown,
    markdown_strip,
    render_night,
    render_nights,
    started,
    write_pictures,
)
from diffmining_core.report.environment import STATIC
from diffmining_core.report.pictures import crop
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.report.source import (
    SHOWN_PER_CLUSTER,
    SMALL_CLUSTER,
    Patch,
    label_slugs,
)
from diffmining_core.results.references import Results, Shard, results_of
from diffmining_core.store.ledger import (
    Attempt,
    Manifest,
    finished,
    read_files,
    read_json,
    read_manifests,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import features, finetune, report, typicality
from tasks.clusters import STAGE as CLUSTERS
from tasks.clusters import label_clusters
from tasks.index import dataset_counts, set_aside_rows, shard_table
from tasks.results import current_clusters
from tasks.units import Done, fill, stage_task

STAGE = "night"
ALGO = "night-1"
DIGEST = "digest.json"
PAGES = "nights"
"""The folder of the pages at the root."""

PICTURED = 24
"""Clusters that entered and are shown; the others are named."""

SET_ASIDE_NAMED = 100
READERS = 8

_digests = TypeAdapter(Digest)
_rows = TypeAdapter(NightRow)


@dataclass(frozen=True)
class NightOptions:
    """What decides a digest beside the results.

    asked: digest of all that was asked of mining. price: of a GPU hour in `currency`, 0 for none.
    """

    asked: str
    price: float
    currency: str


def nights(root: str) -> list[Manifest]:
    """The nights published at a root, one unit each, in the order in which they were made.

    Of a night that was told again, after more had come to it, the later unit.
    """
    made = sorted(read_manifests(open_root(root), STAGE), key=_when)
    return sorted({night_name(manifest): manifest for manifest in made}.values(), key=_when)


def night_name(manifest: Manifest) -> str:
    """The name of a published night."""
    return str(manifest.parameters["night"])


def night_report(manifest: Manifest) -> str:
    """The key of the report that a published night is about."""
    return manifest.inputs[-1]


def _when(manifest: Manifest) -> tuple[str, str]:
    return manifest.created, night_name(manifest)


@stage_task(STAGE, "digest {night}")
def digest(root: str, night: str, title: str, report_key: str, options: NightOptions) -> Done:
    """Publish the digest of the night of this name; the report is the one that is shown now.

    A night that others were told against since stays as it was told. ValueError for what is no
    night's name.
    """
    started(night)
    opened = open_root(root)
    published = nights(root)
    for manifest in published:
        told_against = any(manifest.key in later.inputs[:-1] for later in published)
        if night_name(manifest) == night and told_against:
            return Done(STAGE, manifest.key, computed=False)
    previous = next((m for m in reversed(published) if night_name(m) != night), None)
    unit = night_unit(night, previous, report_key, options)

    def produce(attempt: Attempt) -> None:
        with tempfile.TemporaryDirectory() as folder:
            told = told_digest(opened, night, title, previous, report_key, options, Path(folder))
            if told.shown:
                attempt.write_folder(Path(folder))
        attempt.write_json(DIGEST, asdict(told))
        attempt.facts["row"] = asdict(told.row())

    return fill(root, unit, produce)


def night_unit(
    night: str, previous: Manifest | None, report_key: str, options: NightOptions
) -> Unit:
    """The unit of a night, told against the previous one."""
    inputs = (previous.key, report_key) if previous else (report_key,)
    return Unit(STAGE, ALGO, inputs, {"night": night, **asdict(options)})


def told_digest(
    root: Root,
    night: str,
    title: str,
    previous: Manifest | None,
    report_key: str,
    options: NightOptions,
    folder: Path,
) -> Digest:
    """The digest of a night; the pictures of its clusters that entered are written to `folder`."""
    now = results_of(root, report_key)
    before_key = night_report(previous) if previous else None
    before = results_of(root, before_key) if before_key else None
    changes = changed_clusters(root, before, now)
    entered = in_turn([change for change in changes if change.kind == "entered"])[:PICTURED]
    shown, sprite = shown_clusters(root, now, sorted(entered, key=_place), folder)
    labels, labels_before = _labels(now), _labels(before) if before else []
    aside, places = list(new_set_aside(root, before, now)), ShownAddresses.at(root)
    return Digest(
        night=night,
        previous=night_name(previous) if previous else None,
        title=title,
        measured=report_key != before_key,
        shards=len(now.dataset),
        images=now.images,
        labels=len(labels),
        new_shards=len(_shard_keys(now) - (_shard_keys(before) if before else set())),
        **changed_images(root, before, now),
        new_labels=tuple(label for label in labels if label not in set(labels_before)),
        gone_labels=tuple(label for label in labels_before if label not in set(labels)),
        set_aside=tuple(
            (places.address(uri), places.text(reason)) for uri, reason in aside[:SET_ASIDE_NAMED]
        ),
        set_aside_count=len(aside),
        model=model_words(before, now),
        changes=label_changes(changes, labels_before, labels),
        shown=shown,
        sprite=sprite,
        work=work_since(root, previous, now, options),
        report=finished(root, report.STAGE, report_key).attempt,
        report_before=finished(root, report.STAGE, before_key).attempt if before_key else None,
    )


def _labels(results: Results) -> list[str]:
    """As the results' own page has them."""
    return sorted(dataset_counts(results.dataset))


def _shard_keys(results: Results) -> set[str]:
    return {shard.key for shard in results.dataset}


def changed_images(root: Root, before: Results | None, now: Results) -> dict[str, int]:
    """How many images are new, gone and relabelled; only shards that differ are read.

    An image is its content: one that only lies elsewhere now is neither new nor gone.
    """
    if before is None:
        return {"new_images": now.images, "gone_images": 0, "relabelled": 0}
    was, is_now = set(before.dataset), set(now.dataset)
    old = _labelled_images(root, was - is_now)
    new = _labelled_images(root, is_now - was)
    old_ids, new_ids = _image_ids(old), _image_ids(new)
    in_both = old_ids & new_ids
    return {
        "new_images": (new_ids - in_both).total(),
        "gone_images": (old_ids - in_both).total(),
        "relabelled": in_both.total() - (old & new).total(),
    }


def _labelled_images(root: Root, shards: Iterable[Shard]) -> Counter[tuple[str, frozenset[str]]]:
    """How often each good image lies in these shards, by its id and labels."""
    found: Counter[tuple[str, frozenset[str]]] = Counter()
    with ThreadPoolExecutor(READERS) as pool:
        for table in pool.map(lambda shard: shard_table(root, shard), shards):
            good = table.filter(pc.is_null(table["set_aside"]))
            labels: dict[tuple[str, str], set[str]] = {}
            rows = zip(
                *(good[name].to_pylist() for name in ("uri", "image_id", "label")), strict=True
            )
            for uri, image_id, label in rows:
                labels.setdefault((uri, image_id), set()).add(label)
            found.update((image_id, frozenset(of)) for (_, image_id), of in labels.items())
    return found


def _image_ids(images: Counter[tuple[str, frozenset[str]]]) -> Counter[str]:
    ids: Counter[str] = Counter()
    for (image_id, _), count in images.items():
        ids[image_id] += count
    return ids


def new_set_aside(root: Root, before: Results | None, now: Results) -> Iterator[tuple[str, str]]:
    """(uri, reason) of images set aside in indexing or measuring that were not the night before."""
    known = set(_set_aside(root, before, now)) if before else set()
    seen = set(known)
    for row in _set_aside(root, now, before):
        if row not in seen:
            seen.add(row)
            yield row


def _set_aside(root: Root, of: Results, beside: Results | None) -> Iterator[tuple[str, str]]:
    """(uri, reason) of images set aside in `of`, less what it has in common with the other."""
    shards = set(beside.dataset) if beside else set()
    yield from set_aside_rows(root, [shard for shard in of.dataset if shard not in shards])
    keys = set(beside.typicality) if beside else set()
    measured = zip(of.dataset, of.typicality, strict=True)
    new = [(shard, key) for shard, key in measured if key not in keys]
    yield from typicality.set_aside_images(
        root, [shard for shard, _ in new], [key for _, key in new]
    )


def model_words(before: Results | None, now: Results) -> str:
    """What became of the model."""
    if now.finetune is None:
        return "not finetuned"
    if before is not None and before.finetune == now.finetune:
        return "kept"
    return "finetuned" if before is None or before.finetune is None else "finetuned anew"


def changed_clusters(root: Root, before: Results | None, now: Results) -> list[ClusterChange]:
    """What became of the clusters of labels that have others than the night before.

    Small ones count as not there: they are no element of their label, and its page folds them away.
    """
    was, is_now = dict(before.clusters) if before else {}, dict(now.clusters)
    labels = sorted(label for label in was | is_now if was.get(label) != is_now.get(label))
    earlier, later = (
        _elements(pa.concat_tables([CLUSTER_SCHEMA.empty_table(), *_tables(root, keys, labels)]))
        for keys in (was, is_now)
    )
    return cluster_changes(earlier, later)


def _tables(root: Root, keys: dict[str, str], labels: Sequence[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(READERS) as pool:
        wanted = [keys[label] for label in labels if label in keys]
        return list(pool.map(lambda key: label_clusters(root, key), wanted))


def _elements(clusters: pa.Table) -> pa.Table:
    """The rows of clusters that are not small."""
    pairs = list(zip(clusters["label"].to_pylist(), clusters["cluster"].to_pylist(), strict=True))
    members = Counter(pairs)
    return clusters.filter(pa.array([members[pair] >= SMALL_CLUSTER for pair in pairs], pa.bool_()))


def label_changes(
    changes: Iterable[ClusterChange], labels_before: Sequence[str], labels: Sequence[str]
) -> tuple[LabelChanges, ...]:
    """The changes by label; labels where all stayed are left out."""
    pages, pages_before = label_slugs(labels), label_slugs(labels_before)
    by_label: dict[str, list[ClusterChange]] = {}
    for change in changes:
        if change.kind != "stayed":
            by_label.setdefault(change.label, []).append(change)
    return tuple(
        LabelChanges(
            label=label,
            page=pages.get(label),
            page_before=pages_before.get(label),
            entered=tuple(c.after for c in of if c.kind == "entered" and c.after is not None),
            left=tuple(c.before for c in of if c.kind == "left" and c.before is not None),
            moved=tuple(
                (c.before, c.after)
                for c in of
                if c.kind == "moved" and c.before is not None and c.after is not None
            ),
        )
        for label, of in by_label.items()
    )


def in_turn(entered: Sequence[ClusterChange]) -> list[ClusterChange]:
    """The highest of every label, then the next of every label, and so on."""
    by_label: dict[str, list[ClusterChange]] = {}
    for change in entered:
        by_label.setdefault(change.label, []).append(change)
    turns = zip_longest(*by_label.values())
    return [change for turn in turns for change in turn if change is not None]


def _place(change: ClusterChange) -> tuple[str, int]:
    return change.label, change.after or 0


def shown_clusters(
    root: Root, results: Results, entered: Sequence[ClusterChange], folder: Path
) -> tuple[tuple[ShownCluster, ...], Any]:
    """The clusters with their most central patches, whose pictures are written to `folder`."""
    if not entered:
        return (), None
    labels = {change.label for change in entered}
    of_labels = tuple(pair for pair in results.clusters if pair[0] in labels)
    table = current_clusters(root, replace(results, clusters=of_labels))
    members = [_members(table, change) for change in entered]
    patches = [_patches(rows.slice(0, SHOWN_PER_CLUSTER)) for rows in members]

    def tile(patch: Patch) -> Any:
        return crop(load_pixels(patch.uri, results.size), patch).copy()

    with ThreadPoolExecutor(READERS) as pool:
        tiles = [list(pool.map(tile, of_cluster)) for of_cluster in patches]
    sprite, corners = write_pictures(tiles, folder)
    pages = label_slugs(_labels(results))
    shown = (
        ShownCluster(
            label=change.label,
            rank=change.after or 0,
            page=pages[change.label],
            members=rows.num_rows,
            corners=tuple(places),
        )
        for change, rows, places in zip(entered, members, corners, strict=True)
    )
    return tuple(shown), sprite


def _members(clusters: pa.Table, change: ClusterChange) -> pa.Table:
    """The patches of a cluster of now, the most central first."""
    is_member = (pc.field("label") == change.label) & (pc.field("cluster") == change.after)
    return clusters.filter(is_member).sort_by(
        [("distance", "ascending"), ("label_rank", "ascending")]
    )


def _patches(rows: pa.Table) -> list[Patch]:
    columns = ["image_id", "uri", "y", "x", "size", "typicality"]
    return [Patch(**row) for row in rows.select(columns).to_pylist()]


def work_since(root: Root, previous: Manifest | None, now: Results, options: NightOptions) -> Work:
    """The model's work in the results that was done since the previous night, or ever."""
    since = previous.created if previous else ""
    made = [manifest for manifest in _model_units(root, now) if manifest.created > since]
    on_gpu = [manifest for manifest in made if manifest.device.startswith("cuda")]
    gpu_seconds = sum(m.seconds * m.facts.get("processes", 1) for m in on_gpu)
    seconds = sum(m.seconds for m in made) - sum(m.seconds for m in on_gpu)
    return Work(
        gpu_seconds=round(gpu_seconds, 3),
        cpu_seconds=round(seconds, 3),
        price=options.price,
        currency=options.currency,
    )


def _model_units(root: Root, results: Results) -> Iterator[Manifest]:
    """The manifests of all that a model did for these results."""
    if results.finetune:
        yield finished(root, finetune.STAGE, results.finetune)
    keys = {*results.typicality, *results.typicality_before}
    yield from read_manifests(root, typicality.STAGE, sorted(keys))
    clusters = read_manifests(root, CLUSTERS, [key for _, key in results.clusters])
    yield from read_manifests(root, features.STAGE, [manifest.inputs[0] for manifest in clusters])


def read_digest(root: str, key: str) -> Digest:
    """The digest of a published night."""
    opened = open_root(root)
    return _digests.validate_python(read_json(opened, finished(opened, STAGE, key), DIGEST))


def digest_markdown(root: str, key: str, page: str) -> str:
    """The digest of a published night for the Prefect UI, its pictures in it."""
    opened = open_root(root)
    manifest = finished(opened, STAGE, key)
    names = [markdown_strip(number) for number in range(PICTURED)]
    strips = read_files(opened, manifest, [name for name in names if name in manifest.files])
    return markdown(read_digest(root, key), strips, page)


def publish_nights(root: str, title: str, night: str) -> str:
    """Draw the pages of a published night, of the one before and of all; the URL of the first."""
    opened = open_root(root)
    made = nights(root)
    for name in ("site.css", "icon.svg"):
        opened.write_bytes(f"{PAGES}/static/{name}", (STATIC / name).read_bytes())
    names = [night_name(manifest) for manifest in made]
    place = names.index(night)
    for at in range(max(place - 1, 0), place + 1):
        following = names[at + 1] if at + 1 < len(names) else None
        page = render_night(read_digest(root, made[at].key), made[at].attempt, following)
        opened.write_bytes(f"{PAGES}/{names[at]}/index.html", page.encode())
    rows = {m.attempt: _rows.validate_python(m.facts["row"]) for m in made}
    opened.write_bytes(f"{PAGES}/index.html", render_nights(title, rows).encode())
    return opened.url_of(f"{PAGES}/{night}/index.html")
