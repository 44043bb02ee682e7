from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_maps import SIDE, hills, made_maps

from diffmining_core.signs.moments import LabelMoments, Spread, label_moments
from diffmining_core.store.maps import RaggedMaps


def test_moments_are_those_of_plain_loops() -> None:
    maps = made_maps(hills(5, 1e-2) - 2e-3, 1e-3)
    moments = label_moments(maps, SIDE, {"barn 1", "barn 4"})["barn"]
    values, errors, patches, edge, above, images = [], [], [], [], [], []
    for i in range(5):
        one, error = maps.map(i).astype(float), maps.standard_error(i).astype(float)
        images.append(one.mean())
        for y in range(18):
            for x in range(21):
                values.append(one[y, x])
                errors.append(error[y, x] ** 2)
                above.append(max(one[y, x], 0))
                if y in (0, 17) or x in (0, 20):
                    edge.append(max(one[y, x], 0))
        patches += [
            one[y : y + 3, x : x + 3].mean() for y in range(0, 18, 3) for x in range(0, 21, 3)
        ]
    for spread, numbers in (
        (moments.positions, values),
        (moments.error_squares, errors),
        (moments.patches, patches),
        (moments.edge, edge),
        (moments.above, above),
        (moments.held_out, [images[1], images[4]]),
        (moments.trained, [images[0], images[2], images[3]]),
    ):
        assert spread.count == len(numbers)
        assert spread.mean == pytest.approx(np.mean(numbers), rel=1e-6, abs=1e-12)
        assert spread.variance == pytest.approx(np.var(numbers, ddof=1), rel=1e-6, abs=1e-15)
    assert moments.positive == sum(mean > 0 for mean in images)
    assert moments.null_loss.mean == pytest.approx(0.2)


def test_moments_of_parts_add_up_in_any_order() -> None:
    parts = [made_maps(hills(4, 1e-2, seed), 1e-3, seed=seed) for seed in range(3)]
    moments = [label_moments(part, SIDE)["barn"] for part in parts]
    forth = sum(moments, LabelMoments())
    back = sum(moments[::-1], LabelMoments())
    joined = RaggedMaps.pack(
        [part.map(i) for part in parts for i in range(4)],
        [(part.standard_error(i) ** 2) * 16 * 15 for part in parts for i in range(4)],
        [0.2] * 12,
        [str(i) for i in range(12)],
        ["barn"] * 12,
        16,
    )
    at_once = label_moments(joined, SIDE)["barn"]
    for field in dataclasses.fields(LabelMoments):
        values = [getattr(one, field.name) for one in (forth, back, at_once)]
        if isinstance(values[0], Spread):
            totals = [(one.count, one.total, one.squares) for one in values]
            np.testing.assert_allclose(totals[0], totals[1], rtol=1e-12)
            np.testing.assert_allclose(totals[0], totals[2], rtol=1e-5)
        else:
            assert values[0] == values[1] == values[2]


def test_maps_of_several_labels_and_shapes_and_too_small_for_a_patch() -> None:
    flat = [np.full((2, 9), 1.0, np.float32), np.full((7, 4), -1.0, np.float32)]
    maps = RaggedMaps.pack(
        flat, [one**2 for one in flat], [1.0, 1.0], ["a", "a"], ["tall", "small"], 2
    )
    moments = label_moments(maps, SIDE)
    assert (moments["tall"].patches.count, moments["small"].patches.count) == (0, 2)
    assert (moments["tall"].positive, moments["small"].positive) == (1, 0)
    assert moments["tall"].edge.count == 18
