"""Typicality maps on this machine's disk, to be looked up one by one.

A page shows a few maps of very many units. They are read unit by unit, once, and kept as float32 in
one temporary file, so that memory holds one unit and where each map lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffmining_core.store.maps import RaggedMaps

Map = npt.NDArray[np.float32]
Pair = tuple[str, str]
"""image_id and label of a map."""


class SpooledMaps:
    """The maps of the `wanted` pairs among `units`; of a pair that is there twice the last."""

    def __init__(self, path: Path, units: Iterable[RaggedMaps], wanted: set[Pair]) -> None:
        self.path = path
        self._at: dict[Pair, tuple[int, int, int]] = {}
        with path.open("wb") as file:
            for maps in units:
                for i, pair in enumerate(zip(maps.image_id, maps.label, strict=True)):
                    if pair in wanted:
                        height, width = map(int, maps.hw[i])
                        self._at[pair] = (file.tell(), height, width)
                        file.write(maps.map(i).tobytes())

    def get(self, pair: Pair) -> Map | None:
        """The map of an image under a label, float32 [h, w]; None if it is not among them."""
        return self[pair] if pair in self._at else None

    def __getitem__(self, pair: Pair) -> Map:
        """The map of an image under a label, float32 [h, w]; KeyError if it is not among them."""
        start, height, width = self._at[pair]
        flat = np.fromfile(self.path, np.float32, height * width, offset=start)
        return flat.reshape(height, width)
