"""The highest patches that a run has published so far, as strips of pictures, while it still runs.

In: published `patches` units and the images they were cut from. Out: for a few labels a strip of
patches each. Nothing is written, and each unit's table is read once.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow.compute as pc
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shards import places_of
from diffmining_core.patches.scoring import HIGHEST
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import Patch
from diffmining_core.store.ledger import (
    CorruptFileError,
    Manifest,
    published,
    read_manifests,
    read_table,
)
from diffmining_core.store.roots import Root
from diffmining_core.store.runs import planned

LABELS, PATCHES = 6, 8
"""How many labels are shown, those with the most patches first, and patches of each."""
TILE = 96
"""Pixels of a patch in its strip."""
GAP = 4
UNITS_AT_ONCE = 20
"""Tables that one look reads at most: what a long run has published before comes bit by bit."""


class Found(NamedTuple):
    """A patch, and the shorter side in pixels of the image that it is cut from."""

    patch: Patch
    size: int


@dataclass(frozen=True)
class Strip:
    """A label's highest patches so far: WebP, named by its content; width and height in pixels."""

    label: str
    name: str
    webp: bytes
    width: int
    height: int
    typicality: tuple[float, ...]


class SoFar:
    """What has been seen of a root's patches; `look` sees what is new."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.seen: set[str] = set()
        self.newest: Manifest | None = None
        self.tiles: dict[Found, Tile | None] = {}
        self._begin()

    def look(self) -> list[Strip]:
        """The strips as of now; nothing where no patches of the run are published yet.

        Storage faults are raised; an image that is gone or changed is left out.
        """
        if new := sorted(published(self.root, "patches") - self.seen)[:UNITS_AT_ONCE]:
            self._read(new)
        shown = sorted(sorted(self.patches, key=lambda label: -self.patches[label])[:LABELS])
        kept = {patch for label in shown for patch in self.best[label]}
        self.tiles = {patch: tile for patch, tile in self.tiles.items() if patch in kept}
        strips = (self._strip(label, self.best[label]) for label in shown)
        return [strip for strip in strips if strip]

    def _read(self, keys: Sequence[str]) -> None:
        manifests = read_manifests(self.root, "patches", keys)
        measured = self._measured({manifest.inputs[0] for manifest in manifests})
        tables = {m.facts["content_id"]: m for m in read_manifests(self.root, "index")}
        self._follow(max(manifests, key=lambda manifest: manifest.created))
        self.seen.update(keys)
        for manifest in manifests:
            if not self._is_current(manifest):
                continue
            maps = measured.get(manifest.inputs[0])
            # Of a shard that has lost images since, few are: they wait for the gallery.
            if maps and (shard := tables.get(maps.inputs[0])):
                self._add(manifest, maps, shard)

    def _begin(self) -> None:
        self.shards = 0
        """Units whose patches are in the strips."""
        self.best: dict[str, list[Found]] = {}
        self.patches: dict[str, int] = {}

    def _follow(self, newest: Manifest) -> None:
        """Begin anew where a later run cuts patches in another way."""
        if self.newest and newest.created < self.newest.created:
            return
        before, self.newest = self.newest, newest
        if before and not self._is_current(before):
            self._begin()

    def _is_current(self, patches: Manifest) -> bool:
        """Whether they were cut as the newest were: the same maps may have several."""
        newest = self.newest
        return newest is not None and (patches.algo, patches.parameters) == (
            newest.algo,
            newest.parameters,
        )

    def _measured(self, maps: Iterable[str]) -> dict[str, Manifest]:
        """Those of these maps that show what is mined: not the side before finetuning."""
        there = published(self.root, "typicality")
        of_maps = read_manifests(self.root, "typicality", [key for key in maps if key in there])
        plan = planned(self.root, "finetune")
        if plan and plan[0]:
            finished = plan[0] & published(self.root, "finetune")
            models = {
                manifest.facts["digest"]
                for manifest in read_manifests(self.root, "finetune", finished)
            }
            of_maps = [manifest for manifest in of_maps if manifest.inputs[1] in models]
        return {manifest.key: manifest for manifest in of_maps}

    def _add(self, patches: Manifest, maps: Manifest, shard: Manifest) -> None:
        try:
            table = read_table(self.root, patches, "patches.parquet")
            images = read_table(self.root, shard, "shard.parquet")
        except CorruptFileError:
            return  # `diffmining verify` names it
        places = places_of(images, self.root.url_of(shard.attempt))
        uri_of = dict(zip(images["image_id"].to_pylist(), places, strict=True))
        highest = table.filter(pc.field("kind") == HIGHEST)
        for row in highest.to_pylist():
            label = row["label"]
            best = self.best.setdefault(label, [])
            self.patches[label] = self.patches.get(label, 0) + 1
            if len(best) < PATCHES or row["typicality"] > best[-1].patch.typicality:
                image_id = row["image_id"]
                place = row["y"], row["x"], row["size"]
                patch = Patch(image_id, uri_of[image_id], *place, row["typicality"])
                best.append(Found(patch, int(maps.parameters["size"])))
                best.sort(key=lambda found: -found.patch.typicality)
                del best[PATCHES:]
        self.shards += 1

    def _strip(self, label: str, patches: Sequence[Found]) -> Strip | None:
        for found in patches:
            if found not in self.tiles:
                self.tiles[found] = _tile(found)
        seen = [(self.tiles[found], found.patch.typicality) for found in patches]
        tiles = [(tile, value) for tile, value in seen if tile is not None]
        if not tiles:
            return None
        width = len(tiles) * (TILE + GAP) - GAP
        sheet = Image.new("RGBA", (width, TILE), (0, 0, 0, 0))
        for place, (tile, _) in enumerate(tiles):
            sheet.paste(Image.fromarray(tile).resize((TILE, TILE)), (place * (TILE + GAP), 0))
        data = io.BytesIO()
        sheet.save(data, "WEBP", quality=85)
        name = f"{hashlib.sha256(data.getvalue()).hexdigest()[:32]}.webp"
        values = tuple(value for _, value in tiles)
        return Strip(label, name, data.getvalue(), width, TILE, values)


def _tile(found: Found) -> Tile | None:
    """The patch's pixels, None where its image is not there any more, or is another."""
    try:
        pixels = load_pixels(found.patch.uri, found.size, found.patch.image_id)
        return crop(pixels, found.patch).copy()
    except (InputError, OSError):
        return None
