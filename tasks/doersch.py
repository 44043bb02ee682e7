"""Doersch et al. (2012) over dataset shards: cells, seeds, matches, detectors, and their windows.

The cells of each shard's images are stored. Each round of fast training is a pass over them: every
shard's best matches of all detectors at once, then the next detectors from all shards. The rounds
of reference training are in `doersch_reference`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.baselines import doersch as method
from diffmining_core.baselines import matching
from diffmining_core.baselines.doersch import ALGO, ELEMENT_SCHEMA, Window
from diffmining_core.baselines.matching import IMAGE, SHARD, Detectors, Matches
from diffmining_core.baselines.reading import labelled_pixels
from diffmining_core.baselines.windows import (
    ALGO as WINDOWS_ALGO,
)
from diffmining_core.baselines.windows import (
    CHANNELS,
    Floats,
    descriptors_at,
    image_cells,
    window_grid,
)
from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import image_seed
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import patches
from tasks.doersch_results import (
    CELLS,
    CELLS_STAGE,
    DETECTORS_STAGE,
    IMAGES,
    IMAGES_SCHEMA,
    MATCHES_STAGE,
    Shards,
    all_matches,
    by_label,
    detector_row,
    npy_bytes,
    read_cells,
    read_detectors,
    right_matches,
    write_detectors,
    write_matches,
)
from tasks.index import good_images
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

ELEMENTS_STAGE = "doersch_elements"
ELEMENTS = "elements.parquet"


def cells_unit(shard: Shard, options: dict[str, Any]) -> Unit:
    """The unit of one shard's cells; `options` are size (of the images) and patch_size."""
    return Unit(CELLS_STAGE, WINDOWS_ALGO, (shard.content_id,), options)


@stage_task(CELLS_STAGE, "Doersch's cells {shard.name}")
def cells(root: str, shard: Shard, options: dict[str, Any]) -> Done:
    """Compute and publish the cells of a shard's images."""

    def produce(attempt: Attempt) -> None:
        rows: list[dict[str, Any]] = []
        parts = [np.empty((0, CHANNELS), np.half)]
        images = good_images(open_root(root), shard)
        with Progress(f"cells {shard.name}", shard.images, "images") as progress:
            for image in labelled_pixels(images, options["size"]):
                of_image = image_cells(image.pixels, options["patch_size"])
                known = {"image_id": image.image_id, "labels": list(image.labels)}
                known |= zip(("height", "width"), image.pixels.shape[:2], strict=True)
                rows.append(known | dict(zip(("rows", "columns"), of_image.shape[:2], strict=True)))
                parts.append(of_image.reshape(-1, CHANNELS))
                progress.advance()
        attempt.write_table(IMAGES, pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA))
        attempt.write_bytes(CELLS, npy_bytes(np.concatenate(parts)))
        attempt.counts["images"] = len(rows)

    return fill(root, cells_unit(shard, options), produce)


def seeds_unit(cells_keys: Sequence[str], seeds: int, seed: int) -> Unit:
    """The unit of the first detectors: up to `seeds` random windows of each label."""
    return Unit(DETECTORS_STAGE, ALGO, tuple(cells_keys), {"seeds": seeds, "seed": seed})


@stage_task(DETECTORS_STAGE, "Doersch's seeds")
def choose_seeds(
    root: str, dataset: Sequence[Shard], cells_keys: Sequence[str], seeds: int, seed: int
) -> Done:
    """Choose the seeds of all labels and publish them as detectors.

    The same number of windows of each image of a label, less those without contrast; InputError if
    there are not two labels with some.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        shards = Shards(opened, cells_keys)
        images_of = np.sum([flags.sum(axis=0) for flags in shards.flags], axis=0)
        each = {
            label: -(-seeds // max(1, int(count)))
            for label, count in zip(shards.labels, images_of, strict=True)
        }
        drawn: dict[str, list[tuple[float, Window, Floats]]] = defaultdict(list)
        with Progress(DETECTORS_STAGE, len(dataset), "shards") as progress:
            for number, shard in enumerate(dataset):
                _draw_seeds(opened, shards, number, shard, each, seed, drawn)
                progress.advance()
        rows: list[dict[str, Any]] = []
        weights: list[Floats] = []
        for label in sorted(drawn):
            chosen = sorted(drawn[label], key=lambda one: one[:2])[:seeds]
            rows += [
                detector_row(label, 0.0, window[SHARD], window[IMAGE], [])
                for _, window, _ in chosen
            ]
            weights += [descriptor for _, _, descriptor in chosen]
        if len(drawn) < 2:
            raise InputError(
                "Doersch et al. tells labels apart, for which two or more should have windows with "
                f"contrast, but {len(drawn)} of {len(shards.labels)} have; give images of at least "
                "two labels, larger than a patch."
            )
        write_detectors(attempt, rows, np.stack(weights).astype(np.half))

    return fill(root, seeds_unit(cells_keys, seeds, seed), produce)


def _draw_seeds(
    root: Root,
    shards: Shards,
    number: int,
    shard: Shard,
    each: dict[str, int],
    seed: int,
    drawn: dict[str, list[tuple[float, Window, Floats]]],
) -> None:
    """Add the seeds of one shard, each with a random number that decides which are kept."""
    of_shard = shards.cells(number)
    place_of = {image["image_id"]: place for place, image in enumerate(shards.images(number))}
    patch_size, size = shards.parameter("patch_size"), shards.parameter("size")
    for image in labelled_pixels(good_images(root, shard), size):
        place = place_of[image.image_id]
        image_cells_ = of_shard[place]
        for label in image.labels:
            own_seed = image_seed(image_seed(seed, image.image_id), label)
            windows = [
                window
                for window in method.random_windows(
                    window_grid(image_cells_), each[label], own_seed
                )
                if method.has_contrast(image.pixels, window, patch_size)
            ]
            order = np.random.default_rng([own_seed, 1]).random(len(windows))
            described = descriptors_at(image_cells_, windows)
            for at, window, descriptor in zip(order, windows, described, strict=True):
                drawn[label].append((float(at), (number, place, *window), descriptor))


def matches_unit(cells_key: str, detectors_key: str, count: int) -> Unit:
    """The unit of the `count` best windows of all detectors in one shard."""
    algo = f"{ALGO} {matching.ALGO}"
    return Unit(MATCHES_STAGE, algo, (cells_key, detectors_key), {"count": count})


@stage_task(MATCHES_STAGE, "Doersch's matches {cells_key:.8}")
def matches(root: str, cells_key: str, detectors_key: str, count: int, device: str) -> Done:
    """Find and publish the best windows of all detectors in one shard."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        _, detectors = read_detectors(opened, detectors_key)
        images = read_cells(opened, cells_key)
        with Progress(f"matches {cells_key[:8]}", len(images), "images") as progress:
            found = matching.shard_matches(images, detectors, count, device, progress.advance)
        write_matches(attempt, found)
        attempt.counts["images"] = len(images)

    return fill(root, matches_unit(cells_key, detectors_key, count), produce, device)


def best_seeds(
    found: Matches, right: npt.NDArray[np.bool_], labels: npt.NDArray[Any], kept: int
) -> npt.NDArray[np.intp]:
    """The rows of the best `kept` seeds of each label, at places of their own."""
    return np.concatenate(
        [
            of_label[method.best_seeds(found.rows(of_label), right[of_label], kept)]
            for of_label in by_label(labels)
        ]
    )


def trained_unit(
    first_key: str, detectors_key: str, matches_keys: Sequence[str], kept: int, seed: int
) -> Unit:
    """The unit of a round of fast training: detectors from earlier ones and their matches.

    first_key: the seeds; the first round keeps the best `kept` of each label.
    """
    inputs = (first_key, detectors_key, *matches_keys)
    return Unit(DETECTORS_STAGE, ALGO, inputs, {"kept": kept, "seed": seed})


@stage_task(DETECTORS_STAGE, "Doersch's detectors")
def train_detectors(
    root: str,
    cells_keys: Sequence[str],
    first_key: str,
    detectors_key: str,
    matches_keys: Sequence[str],
    kept: int,
    seed: int,
) -> Done:
    """Fast training: publish a linear SVM for each detector, trained on its matches.

    In the first round only the best `kept` seeds of each label, at places of their own.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        shards = Shards(opened, cells_keys)
        table, detectors = read_detectors(opened, detectors_key)
        found = all_matches(opened, matches_keys, table.num_rows, method.MATCHES)
        right = right_matches(found, shards, table["label"].to_pylist())
        seeds = read_detectors(opened, first_key)
        labels = table["label"].to_numpy(zero_copy_only=False)
        chosen = np.arange(len(labels))
        if detectors_key == first_key:
            chosen = best_seeds(found, right, labels, kept)
        rows, weights = [], []
        with Progress(DETECTORS_STAGE, len(chosen), "detectors") as progress:
            for of_label in by_label(labels[chosen]):
                mine = chosen[of_label]
                negatives = _random_negatives(shards, *seeds, labels[mine[0]], seed)
                taught = [_taught(table, found, right, int(detector)) for detector in mine]
                wanted = sorted({w for one in taught for w in (*one.positives, *one.taken)})
                vectors = shards.descriptors(wanted).astype(np.float32)
                described = dict(zip(wanted, vectors, strict=True))
                for detector, one in zip(mine, taught, strict=True):
                    row = table.slice(int(detector), 1).to_pylist()[0]
                    weight, offset = detectors.weights[detector], row["offset"]
                    if one.positives and (len(negatives) or one.taken):  # else it stays as it is
                        weight, offset = method.trained_detector(
                            np.stack([described[w] for w in one.positives]),
                            np.stack([*negatives, *(described[w] for w in one.taken)]),
                        )
                    taken = [part for window in one.taken for part in window]
                    rows.append({**row, "offset": offset, "taken": taken})
                    weights.append(weight)
                    progress.advance()
        write_detectors(attempt, rows, np.stack(weights))

    unit = trained_unit(first_key, detectors_key, matches_keys, kept, seed)
    return fill(root, unit, produce)


def elements_unit(detectors_key: str, matches_keys: Sequence[str], count: int) -> Unit:
    """The unit of the ranked detectors and the windows of their label among `count` matches."""
    return Unit(ELEMENTS_STAGE, ALGO, (detectors_key, *matches_keys), {"count": count})


@stage_task(ELEMENTS_STAGE, "Doersch's elements")
def rank_elements(
    root: str,
    cells_keys: Sequence[str],
    detectors_key: str,
    matches_keys: Sequence[str],
    count: int,
) -> Done:
    """Rank the detectors of each label and publish their windows (ELEMENT_SCHEMA)."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        shards = Shards(opened, cells_keys)
        table, _ = read_detectors(opened, detectors_key)
        found = all_matches(opened, matches_keys, table.num_rows, count)
        right = right_matches(found, shards, table["label"].to_pylist())
        labels = table["label"].to_numpy(zero_copy_only=False)
        rows = []
        for of_label in by_label(labels):
            for rank, which in enumerate(method.ranking(right[of_label])):
                detector = of_label[which]
                about = {"label": labels[detector], "element": rank}
                about["with_label"] = int(right[detector].sum())
                about["first_with_label"] = int(right[detector, : method.FIRST].sum())
                for match in np.flatnonzero(right[detector]):
                    place = found.places[detector, match]
                    rows.append({**about, "match": int(match), **shards.corner(place)})
        attempt.write_table(ELEMENTS, pa.Table.from_pylist(rows, schema=ELEMENT_SCHEMA))
        attempt.counts["elements"] = len(labels)
        attempt.counts["windows"] = len(rows)

    return fill(root, elements_unit(detectors_key, matches_keys, count), produce)


def elements(root: Root, key: str) -> pa.Table:
    """The windows of published elements (ELEMENT_SCHEMA)."""
    return read_table(root, finished(root, ELEMENTS_STAGE, key), ELEMENTS)


def element_patches_unit(cells_key: str, elements_key: str, size: int, per_image: int) -> Unit:
    """The unit of one shard's windows of elements, among those of `tasks.patches`."""
    options = {"size": size, "per_image": per_image}
    return Unit(patches.STAGE, ALGO, (cells_key, elements_key), options)


@stage_task(patches.STAGE, "Doersch's patches {cells_key:.8}")
def element_patches(
    root: str, cells_key: str, elements_key: str, size: int, per_image: int
) -> Done:
    """Choose and publish the patches of one shard among the windows of elements."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        ids = read_table(opened, finished(opened, CELLS_STAGE, cells_key), IMAGES)["image_id"]
        windows = elements(opened, elements_key)
        of_shard = windows.filter(pc.is_in(windows["image_id"], ids.combine_chunks()))
        table = method.element_patches(of_shard, size, per_image)
        attempt.write_table(patches.TABLE, table)
        attempt.counts["patches"] = table.num_rows

    return fill(root, element_patches_unit(cells_key, elements_key, size, per_image), produce)


def _taught(
    table: pa.Table, found: Matches, right: npt.NDArray[np.bool_], detector: int
) -> method.Examples:
    """What a detector is trained on: its matches, and what it took for its label in any round."""
    now = method.examples(found.places[detector], right[detector])
    before = method.windows_at(np.array(table["taken"][detector].as_py(), np.int32).reshape(-1, 4))
    return method.Examples(now.positives, list(dict.fromkeys([*before, *now.taken])))


def _random_negatives(
    shards: Shards, table: pa.Table, seeds: Detectors, label: str, seed: int
) -> Floats:
    """Descriptors of random windows of images without the label: some of the others' seeds."""
    column = shards.labels.index(label)
    places = zip(table["shard"].to_pylist(), table["image"].to_pylist(), strict=True)
    without = np.flatnonzero([not shards.flags[shard][image, column] for shard, image in places])
    rng = np.random.default_rng(image_seed(seed, label))
    negatives: Floats = seeds.weights[np.sort(rng.permutation(without)[: method.NEGATIVES])]
    return negatives
