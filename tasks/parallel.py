"""The parallel dataset: what images and their translations are typical of at one place at once.

A translated shard is a `Shard` like any other: its unit publishes `shard.parquet`, a row for each
translation, its label the one it was translated to, with the source image's id as `source_id`
beside the columns of SHARD_SCHEMA. So it is measured as any shard is.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core import features
from diffmining_core.clusters import joint, trend
from diffmining_core.clusters.kmeans import adapted_k
from diffmining_core.errors import InputError
from diffmining_core.evaluation import correspondence
from diffmining_core.evaluation.planted import check_truth
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.patches import sequences as top_sequences
from diffmining_core.patches.sequences import TopSequences
from diffmining_core.report.parallel import (
    MEAN_OF,
    NUMBERS,
    Parallel,
    render_parallel,
    write_parallel,
)
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import Patch
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_json, read_manifests, read_table
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.translation import cotypicality as cotypical
from diffmining_core.translation.cotypicality import ParallelMaps, sequence_table
from tasks import typicality
from tasks.evaluation import PLANTED, TruthReference
from tasks.features import feature_matrix
from tasks.index import good_images
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.report import PLACE, ROOT_PAGE
from tasks.translation import source_ids
from tasks.units import Done, fill, stage_task

COTYPICALITY, SEQUENCES, FEATURES, CLUSTERS, REPORT = (
    "cotypicality",
    "sequences",
    "joint_features",
    "joint_clusters",
    "parallel_report",
)
"""The stages, in the order of the data's path."""

FEATURES_RUN_NAME = "joint features {label}"
"""Of a task run."""

TABLE, TREND = "sequences.parquet", "trend.parquet"
PAGE_ALGO = "parallel-page-1"

Numbers = npt.NDArray[np.float32]
Origin = tuple[str, str]
"""image_id and label of a source image; of several labels the first."""


@dataclass(frozen=True)
class Pair:
    """A dataset shard and its translations, with the keys of the typicality maps of both."""

    source: Shard
    translated: Shard
    source_maps: str
    translated_maps: str

    @classmethod
    def from_json(cls, pair: Mapping[str, Any]) -> Pair:
        """A pair as `dataclasses.asdict` and JSON left it."""
        shards_of_it = {name: Shard.from_json(pair[name]) for name in ("source", "translated")}
        return cls(**{**pair, **shards_of_it})

    @property
    def name(self) -> str:
        """A short name for run names."""
        return self.source.name


@dataclass(frozen=True)
class ParallelImage:
    """One source image by the label it is seen under: itself under its own, else translated."""

    own: list[str]
    under: dict[str, ShardImage]

    @property
    def origin(self) -> Origin:
        """What the image is known by."""
        return self.under[self.own[0]].image_id, self.own[0]


def parallel_images(root: Root, pair: Pair) -> list[ParallelImage]:
    """The source images of a pair of shards, in their order, each with its translations."""
    images: dict[str, ParallelImage] = {}
    for image in good_images(root, pair.source):
        seen = images.setdefault(image.image_id, ParallelImage([], {}))
        if image.label not in seen.under:
            seen.own.append(image.label)
            seen.under[image.label] = image
    sources = source_ids(root, pair.translated)
    for image in good_images(root, pair.translated):
        source_id = sources[image.image_id, image.label]
        if source_id in images:
            images[source_id].under.setdefault(image.label, image)
    return list(images.values())


def seen_under(
    root: Root, pairs: Iterable[Pair], wanted: Iterable[Origin]
) -> dict[Origin, ParallelImage]:
    """The wanted source images with their translations; LookupError if one is not there."""
    missing = set(wanted)
    found = {}
    for pair in pairs:
        for image in parallel_images(root, pair):
            if image.origin in missing:
                missing.remove(image.origin)
                found[image.origin] = image
    if missing:
        raise LookupError(
            f"{len(missing)} images of the sequences, such as {min(missing)}, should be in the "
            "shards they are from, and are not; start again"
        )
    return found


def cotypicality_unit(pair: Pair, labels: Sequence[str], options: Mapping[str, Any]) -> Unit:
    """The unit of one pair of shards; `options` are size, per_image and cell of the patches."""
    inputs = (
        pair.source.content_id,
        pair.source_maps,
        pair.translated.key,
        pair.translated.content_id,
        pair.translated_maps,
    )
    return Unit(COTYPICALITY, cotypical.ALGO, inputs, {"labels": list(labels), **options})


@stage_task(COTYPICALITY, "cotypicality {pair.name}")
def cotypicality(root: str, pair: Pair, labels: Sequence[str], options: Mapping[str, Any]) -> Done:
    """Pick the sequences of one shard: the most co-typical places of each of its images.

    An image without a map under one of the labels (set aside when it was to be measured, or not
    translated) is left out and counted. The maps of one pair of shards are held at a time.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        maps = _Maps(opened, (pair.source_maps, pair.translated_maps))
        images = parallel_images(opened, pair)
        whole = [image for image in images if maps.has_all(image, labels)]
        table = sequence_table((maps.of(image, labels) for image in whole), **options)
        attempt.write_table(TABLE, table)
        attempt.counts["images"] = len(whole)
        attempt.counts["left_out"] = len(images) - len(whole)
        attempt.counts["sequences"] = table.num_rows

    return fill(root, cotypicality_unit(pair, labels, options), produce)


class _Maps:
    """The maps of a pair of shards, by image and label."""

    def __init__(self, root: Root, keys: Iterable[str]) -> None:
        self.places: dict[tuple[str, str], tuple[RaggedMaps, int]] = {}
        for key in keys:
            maps = read_maps(root, finished(root, typicality.STAGE, key))
            pairs = zip(maps.image_id, maps.label, strict=True)
            self.places |= {pair: (maps, i) for i, pair in enumerate(pairs)}

    def has_all(self, image: ParallelImage, labels: Sequence[str]) -> bool:
        """Whether an image has a map under each of the labels."""
        return all(
            label in image.under and (image.under[label].image_id, label) in self.places
            for label in labels
        )

    def of(self, image: ParallelImage, labels: Sequence[str]) -> ParallelMaps:
        """The maps of one image that has them all."""
        found = {label: self.places[image.under[label].image_id, label] for label in labels}
        views = {label: maps.map(i) for label, (maps, i) in found.items()}
        return ParallelMaps(image.origin[0], image.own, views)


def sequences_unit(keys: Sequence[str], top: int) -> Unit:
    """The unit of the highest sequences of several pairs of shards."""
    return Unit(SEQUENCES, top_sequences.ALGO, tuple(keys), {"top": top})


@stage_task(SEQUENCES)
def sequences(root: str, keys: Sequence[str], top: int) -> Done:
    """Merge the sequences of all pairs of shards (their `cotypicality` keys) into the `top` ones.

    InputError if there is none.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        best = TopSequences.empty(top)
        with Progress(SEQUENCES, len(keys), "shards") as progress:
            for key in keys:
                best = best.add(read_table(opened, finished(opened, COTYPICALITY, key), TABLE))
                progress.advance()
        table = best.table()
        if not table.num_rows:
            counts = [manifest.counts for manifest in read_manifests(opened, COTYPICALITY, keys)]
            raise InputError(
                "images with a map under every label should have a place for a patch, but none of "
                f"{sum(one['images'] for one in counts)} has, and "
                f"{sum(one['left_out'] for one in counts)} lack a map; translate to fewer labels, "
                "or give a smaller --patch-size."
            )
        attempt.write_table(TABLE, table)
        attempt.counts["sequences"] = table.num_rows

    return fill(root, sequences_unit(keys, top), produce)


def joint_features_unit(
    label: str, sequences_key: str, model: ModelReference, options: Mapping[str, Any]
) -> Unit:
    """The unit of all sequences under one label; `options` are the prompts, size and seed."""
    inputs = (sequences_key, model.digest)
    return Unit(FEATURES, f"{features.ALGO} {trend.ALGO}", inputs, {"label": label, **options})


@stage_task(FEATURES, FEATURES_RUN_NAME)
def joint_features(
    root: str,
    label: str,
    sequences_key: str,
    pairs: Sequence[Pair],
    model: ModelReference,
    options: Mapping[str, Any],
    device: Device,
) -> Done:
    """Embed the patch of every sequence in its image under one label, each image once.

    The table has a row for each sequence in their order: its feature (DIFT) and mean colour
    (CIELAB).
    """

    def produce(attempt: Attempt) -> None:
        from diffmining_core.features.dift import image_features
        from diffmining_core.models.lanes import in_lanes
        from diffmining_core.models.prompts import PromptTemplate

        opened = open_root(root)
        table = _sequences(opened, sequences_key)
        places: dict[Origin, list[tuple[int, Patch]]] = defaultdict(list)
        for row, patch in enumerate(_patches(table)):
            places[patch.image_id, table["label"][row].as_py()].append((row, patch))
        pipeline = loaded(root, model, device)
        before = pipeline.unet_forwards
        prompt_embeds = pipeline.embed_prompts([PromptTemplate.from_options(options).of(label)])[0]
        vectors: list[Numbers] = [np.empty(0, np.float32)] * table.num_rows
        colours = np.empty((table.num_rows, 3), np.float32)

        def read(seen: tuple[Origin, ParallelImage]) -> Callable[[], tuple[Numbers, Numbers]]:
            origin, image = seen
            patches = [patch for _, patch in places[origin]]
            one = image.under[label]
            pixels = load_pixels(one.uri, options["size"], one.image_id)
            return lambda: (
                image_features(
                    pipeline,
                    pixels,
                    prompt_embeds,
                    [(patch.y, patch.x) for patch in patches],
                    patches[0].size,
                    options["seed"],
                    one.image_id,
                ),
                np.stack([trend.patch_colour(crop(pixels, patch)) for patch in patches]),
            )

        seen = seen_under(opened, pairs, places)
        with Progress(f"joint features {label}", len(places), "images") as progress:
            found = in_lanes(pipeline.device, seen.items(), read, lambda embed: embed)
            for origin, (of_image, of_colour) in zip(seen, found, strict=True):
                for (row, _), *numbers in zip(places[origin], of_image, of_colour, strict=True):
                    vectors[row], colours[row] = numbers
                progress.advance()
        attempt.write_table(
            TABLE,
            table.select(["image_id", "label", "y", "x"])
            .append_column("feature", _fixed_lists(np.stack(vectors)))
            .append_column("colour", _fixed_lists(colours)),
        )
        attempt.counts["patches"] = table.num_rows
        attempt.counts["images"] = len(places)
        attempt.counts["unet_forwards"] = pipeline.unet_forwards - before

    unit = joint_features_unit(label, sequences_key, model, options)
    return fill(root, unit, produce, device.name)


def joint_clusters_unit(sequences_key: str, feature_keys: Mapping[str, str], k: int) -> Unit:
    """The unit of the sequences' clusters; feature_keys by label, in the order of the labels."""
    inputs = (sequences_key, *feature_keys.values())
    parameters = {"labels": list(feature_keys), "k": k}
    return Unit(CLUSTERS, f"{joint.ALGO} {trend.ALGO}", inputs, parameters)


@stage_task(CLUSTERS)
def joint_clusters(root: str, sequences_key: str, feature_keys: Mapping[str, str], k: int) -> Done:
    """Cluster the sequences by their features under all labels; k is lowered where they are few.

    The features of one label are held at a time.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        table = _sequences(opened, sequences_key)
        colours: dict[str, npt.NDArray[np.float32]] = {}

        def read_features() -> Iterator[npt.NDArray[np.float32]]:
            for label, key in feature_keys.items():
                of_label = read_table(opened, finished(opened, FEATURES, key), TABLE)
                colours[label] = feature_matrix(of_label, "colour")
                yield feature_matrix(of_label)

        with Progress(CLUSTERS, len(feature_keys), "labels") as progress:
            clusters = joint.joint_clusters(table, _counted(read_features(), progress), k)
        row_of = {place: row for row, place in enumerate(_places(table))}
        order = [row_of[place] for place in _places(clusters)]
        of_members = {label: of_label[order] for label, of_label in colours.items()}
        attempt.write_table(TABLE, clusters)
        attempt.write_table(TREND, trend.trend_table(clusters["cluster"].to_numpy(), of_members))
        attempt.counts["sequences"] = table.num_rows
        attempt.facts["k"] = adapted_k(table.num_rows, k)

    return fill(root, joint_clusters_unit(sequences_key, feature_keys, k), produce)


def parallel_report_unit(
    labels: Sequence[str],
    clusters_key: str,
    truth: TruthReference | None,
    size: int,
    facts: Mapping[str, Any],
) -> Unit:
    """The unit of one page: the clusters it shows and the words it says about them."""
    algo = f"{PAGE_ALGO} {correspondence.ALGO}"
    inputs = (clusters_key, truth.digest if truth else "")
    parameters = {"labels": list(labels), "size": size, "facts": dict(facts)}
    return Unit(REPORT, algo, inputs, parameters)


@stage_task(REPORT)
def parallel_report(
    root: str,
    title: str,
    labels: Sequence[str],
    pairs: Sequence[Pair],
    clusters_key: str,
    truth: TruthReference | None,
    size: int,
    facts: Mapping[str, Any],
) -> Done:
    """Draw and publish the page; `labels` are its columns, truth a planted one or None."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        manifest = finished(opened, CLUSTERS, clusters_key)
        clusters = read_table(opened, manifest, TABLE)
        shown = seen_under(opened, pairs, _shown(clusters))

        def look(image_id: str, own: str, label: str) -> npt.NDArray[np.uint8]:
            image = shown[image_id, own].under[label]
            return load_pixels(image.uri, size, image.image_id)

        drawn = Parallel(
            title=title,
            labels=labels,
            clusters=clusters,
            trend=read_table(opened, manifest, TREND),
            facts=facts,
            look=look,
            truth=_known(opened, pairs, clusters, truth) if truth else None,
        )
        with tempfile.TemporaryDirectory() as folder:
            write_parallel(drawn, Path(folder))
            attempt.write_folder(Path(folder))
        attempt.write_bytes(ROOT_PAGE, render_parallel(drawn, PLACE).encode())
        attempt.counts["sequences"] = clusters.num_rows

    return fill(root, parallel_report_unit(labels, clusters_key, truth, size, facts), produce)


def parallel_numbers(root: str, key: str) -> dict[str, Any]:
    """The numbers of a published page: its clusters with their colours, truth and facts."""
    opened = open_root(root)
    numbers: dict[str, Any] = read_json(opened, finished(opened, REPORT, key), NUMBERS)
    return numbers


def parallel_notes(
    root: str, cotypicality_keys: Sequence[str], clusters_key: str, k: int
) -> list[str]:
    """What was left out or done otherwise than asked, for the page's readers, a sentence each."""
    opened = open_root(root)
    counts = [one.counts for one in read_manifests(opened, COTYPICALITY, cotypicality_keys)]
    clusters = finished(opened, CLUSTERS, clusters_key)
    there, n = clusters.facts["k"], clusters.counts["sequences"]
    notes = []
    if left_out := sum(one["left_out"] for one in counts):
        notes.append(f"Images left out, as they have no map under one of the labels: {left_out}.")
    if there != k:
        notes.append(
            f"{there} joint clusters in place of {k}, because there are only {n} sequences."
        )
    if joint.is_few(n):
        notes.append(
            "Features were reduced to their principal components and not by UMAP, which needs more "
            f"than {n} sequences."
        )
    return notes


def _known(
    root: Root, pairs: Iterable[Pair], clusters: pa.Table, truth: TruthReference
) -> dict[str, Any]:
    """What is known of the clusters; InputError if the truth is not a planted one of the images."""
    if truth.kind != PLANTED:
        raise InputError(
            f"kinds of elements should be known from a planted truth, but {truth.url} has "
            f"{truth.kind}; leave it out."
        )
    table = pq.read_table(pa.BufferReader(read_bytes(truth.url)))
    uris = {image.image_id: image.uri for pair in pairs for image in good_images(root, pair.source)}
    wanted = {image_id: uris[image_id] for image_id in clusters["image_id"].unique().to_pylist()}
    check_truth(table, wanted.values())
    return correspondence.correspondence(clusters, wanted, table)


def _sequences(root: Root, key: str) -> pa.Table:
    return read_table(root, finished(root, SEQUENCES, key), TABLE)


def _shown(clusters: pa.Table) -> set[Origin]:
    """The source images of which the page may show something."""
    ranks = clusters["cluster"].to_numpy()
    rows = [row for rank in np.unique(ranks) for row in np.flatnonzero(ranks == rank)[:MEAN_OF]]
    nearest = clusters.select(["image_id", "label"]).take(rows).to_pydict()
    return set(zip(*nearest.values(), strict=True))


def _patches(table: pa.Table) -> Iterator[Patch]:
    for row in table.select(["image_id", "y", "x", "size", "cotypicality"]).to_pylist():
        typicality = row.pop("cotypicality")
        yield Patch(uri=row["image_id"], typicality=typicality, **row)


def _places(table: pa.Table) -> list[tuple[Any, ...]]:
    columns = (table[name].to_pylist() for name in ("image_id", "label", "y", "x"))
    return list(zip(*columns, strict=True))


def _fixed_lists(values: npt.NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _counted(
    features: Iterator[npt.NDArray[np.float32]], progress: Progress
) -> Iterator[npt.NDArray[np.float32]]:
    for of_label in features:
        yield of_label
        progress.advance()
