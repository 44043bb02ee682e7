"""Which images of a dataset are to be measured further, given what fewer draws have selected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.refinement import (
    ALGO,
    Row,
    chances,
    distances,
    ends_of_top,
    highest_with_errors,
    image_rows,
    undecided,
)
from diffmining_core.patches.scoring import HIGHEST
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import (
    Attempt,
    finished,
    published,
    read_manifests,
    read_table,
)
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.typicality import ALGO as TYPICALITY
from tasks import patches, selection, typicality
from tasks.models import ModelReference
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "refinement"
TABLE = "undecided.parquet"
SCHEMA = pa.schema([(name, pa.string()) for name in ("maps", "image_id", "label")])
"""maps: the key of the unit that has the image's map."""


@dataclass(frozen=True)
class Decided:
    """How far the choice of the top patches is decided.

    undecided: images by the key of their maps. draws: mean over maps. agreement: expected share of
    each label's top patches that belong there, and `overall` of all of them.
    """

    undecided: dict[str, int]
    draws: float
    agreement: dict[str, float]
    overall: float

    def as_facts(self, most: int) -> dict[str, str]:
        """For the readers of a page."""
        return {
            "draws": f"{self.draws:.1f} of {most} on average, in rounds",
            "top patches expected to belong there": f"{100 * self.overall:.0f} %",
        }


def refinement_unit(
    selection_key: str,
    keys: Sequence[str],
    cell: int,
    top: int,
    draws: int | None = None,
    share: float = 0.0,
) -> Unit:
    """The unit of a selection from the maps `keys`.

    draws: of the images in the round that is planned, a `share` of each label's; None when no round
    follows.
    """
    parameters = {"cell": cell, "top": top, "share": share, "draws": draws}
    return Unit(STAGE, ALGO, (selection_key, *keys), parameters)


def measured_before(
    root: str,
    dataset: Sequence[Shard],
    model: ModelReference,
    options: Mapping[str, Any],
    first: Sequence[str],
) -> list[str]:
    """Each shard's maps to go on from: those of the last finished rounds, else those of the first.

    Of the same model and options, whatever else the dataset held then: draws that an image has had
    are not taken back because other images have come.
    """
    opened = open_root(root)
    finals = [m for m in read_manifests(opened, STAGE) if m.parameters["draws"] is None]
    there = published(opened, typicality.STAGE)
    found: dict[str, str] = {}
    for final in sorted(finals, key=lambda manifest: manifest.created):
        keys = [key for key in final.inputs[1:] if key in there]
        for maps in read_manifests(opened, typicality.STAGE, keys):
            alike = {**maps.parameters, "draws": 0} == {**options, "draws": 0}
            if alike and maps.inputs[1] == model.digest and maps.algo == TYPICALITY:
                found[maps.inputs[0]] = maps.key
    return [
        found.get(shard.content_id, found.get(shard.indexed_id, key))
        for shard, key in zip(dataset, first, strict=True)
    ]


@stage_task(STAGE)
def refine(
    root: str,
    selection_key: str,
    keys: Sequence[str],
    patches_keys: Sequence[str],
    parameters: Mapping[str, Any],
) -> Done:
    """Find the undecided images of every shard, from its maps and the patches of these.

    Only those that have had fewer draws than the round that is planned gives them. Holds the maps
    of one shard at a time, and of every image 13 bytes, twice.
    """
    cell, top, until = parameters["cell"], parameters["top"], parameters["draws"]

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        ends = ends_of_top(selection.selected(opened, selection_key), top)
        shards: list[_Shard] = []
        codes: dict[str, int] = {}
        by_label: defaultdict[str, list[float]] = defaultdict(list)
        draws = maps_read = 0
        with Progress(STAGE, len(keys), "shards") as progress:
            for key, patches_key in zip(keys, patches_keys, strict=True):
                maps = read_maps(opened, finished(opened, typicality.STAGE, key))
                highest = highest_with_errors(_highest(opened, patches_key), maps, cell)
                had = dict(
                    zip(zip(maps.image_id, maps.label, strict=True), maps.n_draws, strict=True)
                )
                rows = image_rows(highest)
                shards.append(
                    _Shard(
                        np.array([codes.setdefault(row[1], len(codes)) for row in rows], np.int32),
                        distances(highest, ends),
                        np.array([until is not None and had[row] < until for row in rows], bool),
                    )
                )
                for label, chance in chances(highest, ends):
                    by_label[label].append(chance)
                draws += int(maps.n_draws.sum())
                maps_read += len(maps.n_draws)
                progress.advance()
        chosen_rows = _chosen_rows(opened, keys, patches_keys, shards, parameters["share"])
        columns = [list(column) for column in zip(*chosen_rows, strict=True)] or [[], [], []]
        attempt.write_table(TABLE, pa.table(columns, schema=SCHEMA))
        every = [chance for of_label in by_label.values() for chance in of_label]
        attempt.facts["draws"] = draws / max(maps_read, 1)
        attempt.facts["agreement"] = {
            label: sum(of_label) / len(of_label) for label, of_label in sorted(by_label.items())
        }
        attempt.facts["overall"] = sum(every) / max(len(every), 1)
        attempt.counts["undecided"] = len(chosen_rows)

    unit = refinement_unit(selection_key, keys, cell, top, until, parameters["share"])
    return fill(root, unit, produce)


class _Shard(NamedTuple):
    """The images of a shard that have patches, in the order of `image_rows`."""

    label: npt.NDArray[np.int32]
    distance: npt.NDArray[np.float64]
    wanting: npt.NDArray[np.bool_]
    """Whether they have had fewer draws than the round gives."""


def _chosen_rows(
    root: Root,
    keys: Sequence[str],
    patches_keys: Sequence[str],
    shards: Sequence[_Shard],
    share: float,
) -> list[tuple[str, str, str]]:
    """The images that are measured further, each with the key of its maps; see `SCHEMA`.

    Their names are read again, and only of the shards that have some.
    """
    images = _Shard(*map(np.concatenate, zip(*shards, strict=True)))
    chosen = undecided(images.label, images.distance, share) & images.wanting
    of_shards = np.split(chosen, np.cumsum([len(shard.label) for shard in shards])[:-1])
    found = []
    for key, patches_key, of_shard in zip(keys, patches_keys, of_shards, strict=True):
        if of_shard.any():
            rows = image_rows(_highest(root, patches_key))
            found += [(key, *rows[place]) for place in np.flatnonzero(of_shard)]
    return found


def _highest(root: Root, key: str) -> pa.Table:
    """The highest patches of a shard."""
    table = read_table(root, finished(root, patches.STAGE, key), patches.TABLE)
    return table.filter(pc.field("kind") == HIGHEST)


def decided(root: str, key: str) -> Decided:
    """What a published refinement says."""
    opened = open_root(root)
    facts = finished(opened, STAGE, key).facts
    return Decided(
        undecided={maps: len(rows) for maps, rows in sorted(_rows(opened, key).items())},
        draws=facts["draws"],
        agreement=facts["agreement"],
        overall=facts["overall"],
    )


def undecided_rows(root: Root, key: str, maps: str) -> set[Row]:
    """Which of the images of these maps a published refinement wants measured further."""
    return set(_rows(root, key).get(maps, ()))


def _rows(root: Root, key: str) -> dict[str, list[Row]]:
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in read_table(root, finished(root, STAGE, key), TABLE).to_pylist():
        rows[row["maps"]].append((row["image_id"], row["label"]))
    return rows
