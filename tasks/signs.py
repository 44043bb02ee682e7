"""Signs that a run's results mislead, and pictures that show them."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.images.pixels import load_pixels
from diffmining_core.patches.scoring import HIGHEST, RANDOM
from diffmining_core.results.references import Results
from diffmining_core.signs import ALGO, Sign
from diffmining_core.signs.grouping import grouping, grouping_signs
from diffmining_core.signs.likeness import LabelFeatures, likeness_signs, most_alike
from diffmining_core.signs.measuring import noise_signs, weakness_signs
from diffmining_core.signs.memory import loss_signs, typicality_signs
from diffmining_core.signs.moments import LabelMoments, label_moments
from diffmining_core.signs.pictures import picture
from diffmining_core.signs.places import LabelPlaces, Placed, place_signs
from diffmining_core.signs.sign import Raised
from diffmining_core.store.ledger import Attempt, finished, read_bytes, read_json
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import clusters, finetune, typicality
from tasks.features import feature_matrix, label_features
from tasks.progress import Progress
from tasks.selection import of_label, selected
from tasks.units import Done, fill, stage_task

STAGE = "signs"
RESULT = "signs.json"

SHOWN = 8
"""Patches in a row of a picture."""

Sizes = dict[str, tuple[int, int]]
"""Height and width in pixels of model-size images by id."""


class Measured(NamedTuple):
    """What one reading of all maps gives: sums by label, sizes of the images with patches."""

    moments: dict[str, LabelMoments]
    sizes: Sizes
    draws: int


def signs_unit(results: Results, cell: int) -> Unit:
    """The unit of one run's results."""
    inputs = (
        results.selection,
        *(key for _, key in results.clusters),
        *results.typicality,
        results.finetune or "",
    )
    return Unit(STAGE, ALGO, inputs, {"cell": cell, "size": results.size})


@stage_task(STAGE)
def signs(root: str, results: Results, cell: int) -> Done:
    """Look for signs of failure; `cell` is the side in pixels of one position of a map."""

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        found: list[Sign] = []
        for one in _raised(opened, results, cell):
            if any(one.rows):
                name = f"sign-{len(found) + 1}.webp"
                attempt.write_bytes(name, _webp(one))
                found.append(one.with_picture(name))
            else:
                found.append(one.sign)
        attempt.write_json(RESULT, [sign.as_json() for sign in found])
        attempt.counts["signs"] = len(found)

    return fill(root, signs_unit(results, cell), produce)


def found_signs(root: str, key: str) -> list[Sign]:
    """The signs of a published unit, in the order in which they are to be read."""
    opened = open_root(root)
    stored = read_json(opened, finished(opened, STAGE, key), RESULT)
    return [Sign.from_json(one) for one in stored]


def sign_picture(root: Root, key: str, name: str) -> bytes:
    """A picture of a published unit, WebP."""
    return read_bytes(root, finished(root, STAGE, key), name)


def _raised(root: Root, results: Results, cell: int) -> Iterator[Raised]:
    """All signs, in the order in which they are to be read: what undoes the others comes first."""
    selection = selected(root, results.selection)
    if not len(selection):
        return
    trained = results.finetune
    held_out = frozenset(finetune.held_out_ids(root.url, trained)) if trained else frozenset()
    side = max(1, round(selection["size"][0].as_py() / cell))
    measured = _measured(root, results, cell, side, selection, held_out)
    # Maps may also be there of labels that have left the dataset since.
    current = sorted(set(selection["label"].to_pylist()))
    labels = {label: measured.moments[label] for label in current}
    maps_signs: list[Sign] = []
    if trained:
        maps_signs += _memory_signs(root.url, trained, labels)
    maps_signs += weakness_signs(labels, finetuned=trained is not None)
    maps_signs += noise_signs(labels, side, measured.draws)
    yield from (Raised(sign, []) for sign in maps_signs)

    images = _Images(selection, results.size)
    places = {
        label: LabelPlaces(
            _placed(of_label(selection, label, HIGHEST), measured.sizes),
            _placed(of_label(selection, label, RANDOM), measured.sizes),
        )
        for label in labels
    }
    yield from place_signs(places, labels, images.of_patch)
    yield from _likeness_signs(root, results, images)
    yield from _grouping_signs(root, results, images)


def _measured(
    root: Root,
    results: Results,
    cell: int,
    side: int,
    selection: pa.Table,
    held_out: frozenset[str],
) -> Measured:
    """Read the maps once, a unit at a time."""
    shown = set(selection["image_id"].to_pylist())
    moments: defaultdict[str, LabelMoments] = defaultdict(LabelMoments)
    sizes: Sizes = {}
    draws = 0
    with Progress(STAGE, len(results.typicality), "shards") as progress:
        for key in results.typicality:
            maps = read_maps(root, finished(root, typicality.STAGE, key))
            for label, of_unit in label_moments(maps, side, held_out).items():
                moments[label] += of_unit
            for image_id, (height, width) in zip(maps.image_id, maps.hw.tolist(), strict=True):
                if image_id in shown:
                    sizes[image_id] = (cell * height, cell * width)
            draws = int(maps.n_draws.min()) if len(maps.n_draws) else draws
            progress.advance()
    return Measured(dict(moments), sizes, draws)


def _memory_signs(root: str, trained: str, labels: dict[str, LabelMoments]) -> Sequence[Sign]:
    """By the losses where held-out images were measured in training, else by typicality."""
    held_out = finetune.losses(root, trained)["held_out"]
    steps, losses, seen = (held_out[column] for column in ("step", "loss", "seen"))
    best = steps[int(np.argmin(losses))] if steps else None
    return list(loss_signs(steps, losses, seen)) or list(typicality_signs(labels, best))


class _Images:
    """The images of a run's patches, from where they are now."""

    def __init__(self, selection: pa.Table, size: int) -> None:
        ids, uris = selection["image_id"].to_pylist(), selection["uri"].to_pylist()
        self.uris = dict(zip(ids, uris, strict=True))
        self.size = size

    def of_patch(self, patch: Placed) -> npt.NDArray[np.uint8]:
        return load_pixels(patch.uri, self.size, patch.image_id)

    def tiles(self, table: pa.Table, rows: Iterable[int]) -> list[npt.NDArray[np.uint8]]:
        """The patches in some rows of a table."""
        tiles = []
        for row in table.select(["image_id", "y", "x", "size"]).take(list(rows)).to_pylist():
            image_id, y, x, size = row["image_id"], row["y"], row["x"], row["size"]
            pixels = load_pixels(self.uris[image_id], self.size, image_id)
            tiles.append(pixels[y : y + size, x : x + size])
        return tiles


def _placed(rows: pa.Table, sizes: Sizes) -> list[Placed]:
    columns = ["image_id", "uri", "y", "x", "size"]
    return [
        Placed(**row, height=sizes[row["image_id"]][0], width=sizes[row["image_id"]][1])
        for row in rows.select(columns).to_pylist()
    ]


def _likeness_signs(root: Root, results: Results, images: _Images) -> Iterator[Raised]:
    """Of all labels; only the patches that are compared are held."""
    compared, tables = [], {}
    for label, key in results.clusters:
        table = _features(root, key)
        whole = LabelFeatures(label, feature_matrix(table), np.array(table["image_id"].to_pylist()))
        compared.append(whole.shortened())
        tables[label] = table.drop_columns(["feature"])
    for sign, pair in likeness_signs(most_alike(compared)):
        a, b = zip(*pair.nearest, strict=True)
        yield Raised(sign, [images.tiles(tables[pair.a], a), images.tiles(tables[pair.b], b)])


def _grouping_signs(root: Root, results: Results, images: _Images) -> Iterator[Raised]:
    for label, key in results.clusters:
        embedded, clustered = _features(root, key), clusters.label_clusters(root, key)
        if len(embedded) < 2:
            continue
        rank_of = dict(zip(_places(clustered), clustered["cluster"].to_pylist(), strict=True))
        ranks = np.array([rank_of[place] for place in _places(embedded)])
        for sign, shown in grouping_signs(label, grouping(feature_matrix(embedded), ranks)):
            # The rows of a cluster come nearest first.
            of_cluster = [np.flatnonzero(clustered["cluster"].to_numpy() == rank) for rank in shown]
            yield Raised(sign, [images.tiles(clustered, rows[:SHOWN]) for rows in of_cluster])


def _features(root: Root, clusters_key: str) -> pa.Table:
    """The features that a clusters unit was made from."""
    return label_features(root, finished(root, clusters.STAGE, clusters_key).inputs[0])


def _places(table: pa.Table) -> list[tuple[str, int, int]]:
    columns = (table[name].to_pylist() for name in ("image_id", "y", "x"))
    return list(zip(*columns, strict=True))


def _webp(raised: Raised) -> bytes:
    data = io.BytesIO()
    picture(raised.rows).save(data, "WEBP", quality=85, method=3)
    return data.getvalue()
