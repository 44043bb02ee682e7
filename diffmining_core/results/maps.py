"""The typicality maps of a run, unit by unit: memory holds those of one dataset shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from diffmining_core.results.references import SHARD_TABLE, TYPICALITY, Shard
from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.maps import RaggedMaps, mapped_pairs, read_maps
from diffmining_core.store.roots import Root

Map = npt.NDArray[np.float32]
Pair = tuple[str, str]
"""image_id and label."""


class UnitMaps:
    """The maps of the images of some shards, which are the units `keys`."""

    def __init__(self, root: Root, shards: Sequence[Shard], keys: Sequence[str]) -> None:
        self._root = root
        self._shards = dict(zip(keys, shards, strict=True))
        self._key_of: dict[Pair, str] | None = None
        self._held: tuple[str, RaggedMaps, dict[Pair, int]] | None = None

    def __iter__(self) -> Iterator[tuple[str, str, Map]]:
        """(image_id, label, map) of every image under each of its labels, unit by unit."""
        for key, shard in self._shards.items():
            maps, wanted = self._read(key), live_pairs(self._root, shard)
            for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True)):
                if wanted is None or pair in wanted:
                    yield *pair, maps.map(i).copy()

    def get(self, pair: Pair) -> Map | None:
        """The map of an image under a label, float32 [h, w], or None; its unit stays in memory."""
        if self._key_of is None:
            self._key_of = self._listed()
        key = self._key_of.get(pair)
        if key is None:
            return None
        if self._held is None or self._held[0] != key:
            maps = self._read(key)
            rows = {pair: i for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True))}
            self._held = key, maps, rows
        _, maps, rows = self._held
        return maps.map(rows[pair]).copy()

    def _listed(self) -> dict[Pair, str]:
        """The unit that has the map of each pair."""
        listed: dict[Pair, str] = {}
        for key, shard in self._shards.items():
            wanted = live_pairs(self._root, shard)
            for pair in mapped_pairs(self._root, finished(self._root, TYPICALITY, key)):
                if wanted is None or pair in wanted:
                    listed[pair] = key
        return listed

    def _read(self, key: str) -> RaggedMaps:
        return read_maps(self._root, finished(self._root, TYPICALITY, key))


def live_pairs(root: Root, shard: Shard) -> set[Pair] | None:
    """The rows of a shard that still belong to the dataset; None where all do.

    Maps that were made before some left serve on.
    """
    if not shard.dropped:
        return None
    table = read_table(root, finished(root, shard.stage, shard.key), SHARD_TABLE)
    dropped = set(shard.dropped)
    rows = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return {pair for row, pair in enumerate(rows) if row not in dropped}
