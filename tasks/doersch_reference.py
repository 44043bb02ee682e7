"""Reference training of Doersch's detectors over dataset shards.

The best seeds are detectors; each round finds their positives shard by shard, in its third of the
windows, and trains them against random and hard negatives from all shards. Of each label as many
descriptors are in memory as a round has negatives, random and hard, whatever the dataset's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmining_core.baselines import doersch as method
from diffmining_core.baselines import doersch_reference as reference
from diffmining_core.baselines import matching
from diffmining_core.baselines.doersch import POSITIVES, Window
from diffmining_core.baselines.doersch_reference import ALGO
from diffmining_core.baselines.matching import IMAGE, Detectors, Matches
from diffmining_core.baselines.windows import CELLS, Floats, Place
from diffmining_core.patches.scoring import image_seed
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.doersch import best_seeds
from tasks.doersch_results import (
    DETECTORS_STAGE,
    MATCHES_STAGE,
    Shards,
    all_matches,
    by_label,
    read_detectors,
    right_matches,
    write_detectors,
    write_matches,
)
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task


def kept_unit(seeds_key: str, matches_keys: Sequence[str], kept: int) -> Unit:
    """The unit of the best `kept` seeds of each label, as detectors."""
    return Unit(DETECTORS_STAGE, method.ALGO, (seeds_key, *matches_keys), {"kept": kept})


@stage_task(DETECTORS_STAGE, "Doersch's best seeds")
def keep_seeds(
    root: str, cells_keys: Sequence[str], seeds_key: str, matches_keys: Sequence[str], kept: int
) -> Done:
    """Publish the best seeds of each label, at places of their own."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        table, seeds = read_detectors(opened, seeds_key)
        found = all_matches(opened, matches_keys, table.num_rows, method.MATCHES)
        labels = table["label"].to_numpy(zero_copy_only=False)
        right = right_matches(found, Shards(opened, cells_keys), labels.tolist())
        chosen = best_seeds(found, right, labels, kept)
        write_detectors(attempt, table.take(chosen).to_pylist(), seeds.weights[chosen])

    return fill(root, kept_unit(seeds_key, matches_keys, kept), produce)


def positives_unit(cells_key: str, detectors_key: str, round_: int, seed: int) -> Unit:
    """The unit of the best windows of detectors in their labels' images of one shard."""
    options = {"count": POSITIVES, "round": round_, "seed": seed}
    return Unit(MATCHES_STAGE, f"{ALGO} {matching.ALGO}", (cells_key, detectors_key), options)


@stage_task(MATCHES_STAGE, "Doersch's positives {cells_key:.8}")
def positives(
    root: str, cells_key: str, detectors_key: str, round_: int, seed: int, device: str
) -> Done:
    """Find and publish each detector's best windows in images of its label, in a round's third."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        table, detectors = read_detectors(opened, detectors_key)
        shards = Shards(opened, [cells_key])
        labels = table["label"].to_numpy(zero_copy_only=False)
        scores = np.full((len(labels), POSITIVES), -np.inf, np.float32)
        places = np.full((len(labels), POSITIVES, 4), -1, np.int32)
        images = [int(flags.sum()) for flags in shards.flags[0].T]
        with Progress(f"positives {cells_key[:8]}", sum(images), "images") as progress:
            for mine in by_label(labels):
                if labels[mine[0]] not in shards.labels:
                    continue
                those = np.flatnonzero(shards.flags[0][:, shards.labels.index(labels[mine[0]])])
                cells = [shards.cells(0)[at] for at in those]
                thirds = [
                    reference.third(_grid(image), image["image_id"], round_, seed)
                    for image in (shards.images(0)[at] for at in those)
                ]
                own = Detectors(detectors.weights[mine], detectors.offsets[mine])
                found = matching.shard_matches(
                    cells, own, POSITIVES, device, progress.advance, thirds
                )
                width = found.scores.shape[1]
                scores[mine, :width] = found.scores
                places[mine, :width] = found.places
                places[mine, :width, IMAGE] = those[found.places[..., IMAGE]]
        write_matches(attempt, Matches(scores, places))
        attempt.counts["images"] = sum(images)

    return fill(root, positives_unit(cells_key, detectors_key, round_, seed), produce, device)


def round_unit(
    detectors_key: str,
    positives_keys: Sequence[str],
    round_: int,
    seed: int,
    negatives: int = reference.NEGATIVES,
    least: int = reference.LEAST_NEGATIVES,
) -> Unit:
    """The unit of the detectors after one round."""
    options = {"round": round_, "seed": seed, "negatives": negatives, "least": least}
    return Unit(DETECTORS_STAGE, ALGO, (detectors_key, *positives_keys), options)


@stage_task(DETECTORS_STAGE, "Doersch's detectors, round {round_}")
def train_round(
    root: str,
    cells_keys: Sequence[str],
    detectors_key: str,
    positives_keys: Sequence[str],
    round_: int,
    seed: int,
    negatives: int = reference.NEGATIVES,
    least: int = reference.LEAST_NEGATIVES,
) -> Done:
    """Train each detector on a round's positives and negatives, and publish the next ones.

    negatives, least: of a detector, see `doersch_reference.negatives_wanted`. One without positives
    or negatives stays as it is.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        shards = Shards(opened, cells_keys)
        table, detectors = read_detectors(opened, detectors_key)
        found = all_matches(opened, positives_keys, table.num_rows, POSITIVES)
        rows, weights = table.to_pylist(), detectors.weights.copy()
        drawing = _Drawing(shards, round_, seed)
        with Progress(DETECTORS_STAGE, len(rows), "detectors") as progress:
            for mine in by_label(table["label"].to_numpy(zero_copy_only=False)):
                right = {int(at): reference.positive_windows(found, int(at)) for at in mine}
                hard = {at: method.windows_at(_places(rows[at]["taken"])) for at in right}
                wanted = {
                    at: reference.negatives_wanted(len(hard[at]), negatives, least) for at in right
                }
                drawn = drawing.negatives(rows[mine[0]]["label"], max(wanted.values()))
                for at, (weight, taken) in _trained(shards, right, hard, wanted, drawn).items():
                    weights[at] = weight
                    rows[at]["taken"] += [part for window in taken for part in window]
                progress.advance(len(mine))
        write_detectors(attempt, rows, weights)

    unit = round_unit(detectors_key, positives_keys, round_, seed, negatives, least)
    return fill(root, unit, produce)


def _trained(
    shards: Shards,
    right: dict[int, list[Window]],
    hard: dict[int, list[Window]],
    wanted: dict[int, int],
    drawn: list[Window],
) -> dict[int, tuple[Floats, list[Window]]]:
    """The weights of one label's detectors, by number, and the drawn windows that were hard.

    right, hard, wanted: positives, earlier hard negatives, and how many of `drawn` each gets.
    """
    ready = [at for at in right if right[at] and (drawn or hard[at])]
    if not ready:
        return {}
    kept = list(dict.fromkeys(window for at in ready for window in hard[at]))
    place_of = {window: len(drawn) + place for place, window in enumerate(kept)}
    candidates = [
        np.array(
            [*range(min(wanted[at], len(drawn))), *(place_of[one] for one in hard[at])], np.intp
        )
        for at in ready
    ]
    taught = shards.descriptors([window for at in ready for window in right[at]])
    ends = np.cumsum([len(right[at]) for at in ready])[:-1]
    solved = reference.trained_detectors(
        np.split(taught, ends), shards.descriptors([*drawn, *kept]), candidates
    )
    return {
        at: (one.weights, [drawn[number] for number in one.above if number < len(drawn)])
        for at, one in zip(ready, solved, strict=True)
    }


class _Drawing:
    """Random windows of the images of all shards, in one round's third."""

    def __init__(self, shards: Shards, round_: int, seed: int) -> None:
        self.shards, self.round, self.seed = shards, round_, seed
        images = [one for number in range(len(shards.flags)) for one in shards.images(number)]
        self.counts = np.array([reference.window_count(_grid(image)) for image in images], np.int64)
        self.starts = np.cumsum([0, *(len(flags) for flags in shards.flags)])
        keys = [image_seed(seed, image["image_id"]) for image in images]
        self.order = np.argsort(np.array(keys, np.uint64))
        """Of the images: the same however they are sharded."""

    def negatives(self, label: str, wanted: int) -> list[Window]:
        """Up to `wanted` windows of images without the label, in random order."""
        shards, column = self.shards, self.shards.labels.index(label)
        flags = np.concatenate(shards.flags)[:, column]
        without = self.order[~flags[self.order]]
        seed = image_seed(self.seed, label)
        images, places = reference.drawn(self.counts[without], wanted, self.round, seed)
        images = without[images]
        of_shard = np.searchsorted(self.starts, images, side="right") - 1
        windows: list[Window] = [(0, 0, 0, 0)] * len(images)
        order = np.argsort(images, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(images[order])) + 1) if windows else ():
            shard = int(of_shard[same[0]])
            image = int(images[same[0]] - self.starts[shard])
            about = shards.images(shard)[image]
            grid = _grid(about)
            third = reference.third(grid, about["image_id"], self.round, self.seed)
            for at in same:
                windows[at] = (shard, image, *divmod(int(third[places[at]]), grid[1]))
        return windows


def _grid(image: dict[str, Any]) -> Place:
    """How many windows an image (IMAGES_SCHEMA) has down and across."""
    return image["rows"] - CELLS + 1, image["columns"] - CELLS + 1


def _places(taken: list[int]) -> npt.NDArray[Any]:
    return np.array(taken, np.int32).reshape(-1, 4)
