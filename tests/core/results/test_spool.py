from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffmining_core.results.spool import SpooledMaps
from diffmining_core.store.maps import RaggedMaps


def unit(*maps: tuple[str, str, tuple[int, int], float]) -> RaggedMaps:
    means = [np.full(shape, value, np.float32) for _, _, shape, value in maps]
    return RaggedMaps.pack(
        means,
        means,
        [1.0] * len(maps),
        [image_id for image_id, _, _, _ in maps],
        [label for _, label, _, _ in maps],
        n_draws=2,
    )


def test_wanted_maps_are_found_again_and_no_others(tmp_path: Path) -> None:
    units = [
        unit(("1", "a", (2, 3), 0.5), ("2", "a", (4, 1), 1.5)),
        unit(("1", "b", (3, 3), -2.0), ("3", "b", (1, 1), 9.0)),
    ]
    maps = SpooledMaps(tmp_path / "maps", iter(units), {("2", "a"), ("1", "b"), ("0", "a")})
    assert maps["2", "a"].tolist() == [[1.5]] * 4
    assert maps["1", "b"].shape == (3, 3)
    assert maps["1", "b"].dtype == np.float32
    assert maps.get(("1", "a")) is None
    with pytest.raises(KeyError):
        maps["3", "b"]
    assert (tmp_path / "maps").stat().st_size == 4 * (4 + 9)
