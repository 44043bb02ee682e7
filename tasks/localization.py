"""Typicality maps against the places where labels are known to be: scores of images, and a page."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.evaluation.masks import MaskFolder
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.localization.findings import examples, of_label
from diffmining_core.localization.scores import ALGO, MapScore, map_score, score_table
from diffmining_core.localization.truth import BoxTruth, MaskTruth, PlantedTruth, Truth
from diffmining_core.patches.scoring import upsample_bilinear
from diffmining_core.report.localization import (
    NUMBERS,
    Localization,
    Seen,
    render_localization,
    write_localization,
)
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, published, read_json
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import typicality
from tasks.evaluation import MASKS, PLANTED, TruthReference
from tasks.index import good_images, part_of
from tasks.models import ModelReference
from tasks.progress import Progress
from tasks.report import PLACE, ROOT_PAGE
from tasks.results import Map, maps_of
from tasks.typicality import wanted_unit
from tasks.units import Done, fill, stage_task

STAGE = "localization"
PAGE_ALGO = "page-1"
"""Version of what the page shows; ALGO is that of the scores."""

NOT_MEASURED = "they were set aside when they were to be measured"
NO_PIXEL = "what is known of where their label is covers no pixel at this size"
"""Why located images are not scored."""

Keys = Mapping[str, Sequence[str]]
"""The maps of each side, by its name: the key for each shard."""


@dataclass(frozen=True)
class Located:
    """The shards that have images whose label is located, and the part of each that these are.

    pairs: such images, each as often as it has a located label. digest: of what is known of them.
    """

    shards: tuple[Shard, ...]
    parts: tuple[Shard, ...]
    pairs: int
    digest: str


def located_images(root: str, dataset: Sequence[Shard], truth: TruthReference) -> Located:
    """The images of a dataset whose label is located; InputError if there is none."""
    opened, known = open_root(root), _opened_truth(truth)
    digest = hashlib.sha256(truth.digest.encode())
    shards, parts, pairs = [], [], 0
    for shard in dataset:
        located = known.located(good_images(opened, shard))
        if not located:
            continue
        for image in located:
            known_of_it = [*_names(image).values(), image.width, image.height, image.boxes]
            digest.update(json.dumps(known_of_it).encode() + b"\n")
        shards.append(shard)
        parts.append(part_of(opened, shard, located))
        pairs += len(located)
    if not shards:
        raise InputError(
            f"the {truth.kind} of {truth.url} should say where in its image a label is, for some "
            "of the images, but do so for none; give a folder of masks with LABEL/STEM.png for "
            "LABEL/STEM.jpg (--masks), or a dataset with boxes."
        )
    return Located(tuple(shards), tuple(parts), pairs, digest.hexdigest())


def shards_to_measure(
    root: str, located: Located, model: ModelReference, options: dict[str, Any]
) -> list[Shard]:
    """Whole shards where their maps are there, as mining leaves them; else what is located."""
    there = published(open_root(root), typicality.STAGE)
    return [
        shard if wanted_unit(shard, model, options, there).key in there else part
        for shard, part in zip(located.shards, located.parts, strict=True)
    ]


def localization_unit(located: Located, keys: Keys, size: int, facts: Mapping[str, Any]) -> Unit:
    """The unit of one localisation: what is located, the maps, and what the page says."""
    inputs = (located.digest, *(key for of_side in keys.values() for key in of_side))
    options = {"sides": list(keys), "size": size, "facts": dict(facts)}
    return Unit(STAGE, f"{PAGE_ALGO} {ALGO}", inputs, options)


@stage_task(STAGE)
def localization(
    root: str,
    title: str,
    truth: TruthReference,
    located: Located,
    keys: Keys,
    size: int,
    facts: Mapping[str, Any],
) -> Done:
    """Score every image under every label that is located, and publish the page."""

    def produce(attempt: Attempt) -> None:
        scoring = _Scoring(open_root(root), _opened_truth(truth), located, keys, size)
        scores = scoring.scores()
        notes = [*facts.get("notes", ()), *scoring.notes()]
        shown = ShownAddresses.at(open_root(root))
        facts_and_notes = {**facts, "notes": notes}
        drawn = Localization(title, scores, facts_and_notes, shown, scoring.look(scores))
        with tempfile.TemporaryDirectory() as folder:
            write_localization(drawn, Path(folder))
            attempt.write_folder(Path(folder))
        attempt.write_bytes(ROOT_PAGE, render_localization(drawn, PLACE).encode())
        attempt.counts["images"] = scores.num_rows // len(keys)
        attempt.counts["left_out"] = scoring.left_out.total()

    return fill(root, localization_unit(located, keys, size, facts), produce)


def localization_numbers(root: str, key: str) -> dict[str, Any]:
    """The numbers of a published localisation: sides, findings, all, and how it was made."""
    opened = open_root(root)
    numbers: dict[str, Any] = read_json(opened, finished(opened, STAGE, key), NUMBERS)
    return numbers


def _opened_truth(truth: TruthReference) -> Truth:
    if truth.kind == MASKS:
        return MaskTruth(MaskFolder(truth.url))
    if truth.kind == PLANTED:
        return PlantedTruth(pq.read_table(pa.BufferReader(read_bytes(truth.url))))
    return BoxTruth()


class _Scoring:
    """The located images of all shards, held against their maps."""

    def __init__(self, root: Root, truth: Truth, located: Located, keys: Keys, size: int) -> None:
        self.root = root
        self.truth = truth
        self.keys = keys
        self.size = size
        self.images = [truth.located(good_images(root, shard)) for shard in located.shards]
        self.left_out: Counter[str] = Counter()

    def scores(self) -> pa.Table:
        """A table of SCORE_SCHEMA; InputError if no image can be scored."""
        total = sum(len(of_shard) for of_shard in self.images)
        with Progress(STAGE, total, "images") as progress:
            scores = score_table(
                (_names(image), by_side)
                for place, of_shard in enumerate(self.images)
                for image, by_side in self._shard_scores(place, of_shard, progress)
            )
        if not scores.num_rows:
            raise InputError(
                f"{total} images should be scored, but none is, as {' or '.join(self.left_out)}; "
                "measure them at a larger --size, or look at why they are set aside."
            )
        return scores

    def look(self, scores: pa.Table) -> Callable[[str, str], Seen]:
        """What the page asks for to show an image; only the maps of those it shows are held."""
        shown = {
            (row["image_id"], row["label"])
            for label in scores["label"].unique().to_pylist()
            for row in examples(of_label(scores, label)).values()
        }
        images = {(one.image_id, one.label): one for of_shard in self.images for one in of_shard}
        maps = {side: maps_of(self.root, of_side, shown) for side, of_side in self.keys.items()}

        def seen(image_id: str, label: str) -> Seen:
            image = images[image_id, label]
            return Seen(
                pixels=load_pixels(image.uri, self.size, image_id),
                mask=self.truth.mask(image, self.size),
                maps={side: of_side[image_id, label] for side, of_side in maps.items()},
            )

        return seen

    def notes(self) -> list[str]:
        """What the readers of the page should know of what is not scored."""
        return [
            f"Images that are not scored, as {reason}: {count}."
            for reason, count in self.left_out.most_common()
        ]

    def _shard_scores(
        self, place: int, images: Sequence[ShardImage], progress: Progress
    ) -> Iterator[tuple[ShardImage, dict[str, MapScore]]]:
        maps = {
            side: _by_pair(read_maps(self.root, finished(self.root, typicality.STAGE, keys[place])))
            for side, keys in self.keys.items()
        }
        for image in images:
            progress.advance()
            pair = (image.image_id, image.label)
            if not all(pair in of_side for of_side in maps.values()):
                self.left_out[NOT_MEASURED] += 1
                continue
            mask = self.truth.mask(image, self.size)
            if not mask.any():
                self.left_out[NO_PIXEL] += 1
                continue
            yield (
                image,
                {
                    side: map_score(upsample_bilinear(of_side[pair], mask.shape), mask)
                    for side, of_side in maps.items()
                },
            )


def _by_pair(maps: RaggedMaps) -> dict[tuple[str, str], Map]:
    pairs = zip(maps.image_id, maps.label, strict=True)
    return {pair: maps.map(i) for i, pair in enumerate(pairs)}


def _names(image: ShardImage) -> dict[str, str]:
    return {"image_id": image.image_id, "uri": image.uri, "label": image.label}
