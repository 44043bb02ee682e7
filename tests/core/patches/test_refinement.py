"""Which images may still change the top patches, by the errors of their scores."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from diffmining_core.patches.refinement import (
    ALGO,
    SHARE,
    chances,
    distances,
    ends_of_top,
    highest_with_errors,
    image_rows,
    undecided,
)
from diffmining_core.patches.scoring import HIGHEST, shard_patches
from diffmining_core.store.maps import RaggedMaps
from diffmining_core.typicality.rounds import rounds


def scored(*rows: tuple[str, str, float, float]) -> pa.Table:
    """Image, label, typicality and standard error of patches."""
    names = ("image_id", "label", "typicality", "standard_error")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return pa.table(columns).set_column(2, "typicality", pa.array(columns["typicality"], "float32"))


def test_the_end_of_a_top_is_its_last_patch_where_there_are_enough() -> None:
    selection = pa.table(
        {
            "label": ["a"] * 4 + ["b"],
            "kind": ["highest", "highest", "highest", "lowest", "highest"],
            "typicality": [3.0, 1.0, 2.0, -5.0, 9.0],
        }
    )
    assert ends_of_top(selection, 3) == {"a": 1.0}
    assert ends_of_top(selection, 1) == {"a": 1.0, "b": 9.0}
    assert ends_of_top(selection, 4) == {}


def test_an_image_is_as_far_from_being_decided_as_the_nearest_of_its_patches() -> None:
    highest = scored(
        ("clearly in", "a", 7.0, 1.0),
        ("may leave", "a", 3.5, 1.0),
        ("may enter", "a", 2.5, 1.0),
        ("by its second", "a", 5.0, 1.0),
        ("by its second", "a", 3.25, 1.0),
        ("sure of itself", "a", 3.5, 0.125),
        ("all are in", "b", 3.0, 9.0),
    )
    rows = image_rows(highest)
    assert rows == sorted({*rows})
    found = dict(zip((image for image, _ in rows), distances(highest, {"a": 3.0}), strict=True))
    assert found == {
        "clearly in": math.inf,
        "may leave": 0.5,
        "may enter": 0.5,
        "by its second": 0.25,
        "sure of itself": math.inf,
        "all are in": math.inf,
    }


def test_the_share_of_each_label_that_is_nearest_goes_on() -> None:
    label = np.array([0, 0, 1, 0, 1, 0, 1, 1], np.int32)
    distance = np.array([3.0, 1.0, 0.5, 2.0, math.inf, 4.0, math.inf, math.inf])
    found = undecided(label, distance, 0.5)
    assert found.tolist() == [False, True, True, True, False, False, False, False]
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_array_equal(undecided(label[order], distance[order], 0.5), found[order])
    assert undecided(label, distance, 1.0).tolist() == np.isfinite(distance).tolist()
    assert not undecided(label, distance, 0.0).any()
    # Of images at one distance all or none, so that no order of theirs decides.
    assert undecided(np.zeros(4, np.int32), np.array([1.0, 2.0, 2.0, 3.0]), 0.5).tolist() == [
        True,
        True,
        True,
        False,
    ]


def test_the_rounds_of_100_draws_take_a_quarter_of_its_forwards() -> None:
    """Where each image that goes on has been in every round before."""
    draws, images, cost = rounds(100), 1.0, 8.0
    for before, after in pairwise(draws):
        images *= SHARE
        cost += images * (after - before)
    assert 21 < cost < 24


def test_the_chances_are_those_of_a_normal_variable_above_the_end() -> None:
    highest = scored(
        ("x", "a", 3.0, 1.0), ("y", "a", 4.0, 1.0), ("z", "a", 2.9, 1.0), ("w", "b", 1.0, 1.0)
    )
    found = chances(highest, {"a": 3.0})
    one_sigma = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert found == [("a", 0.5), ("a", pytest.approx(one_sigma)), ("b", 1.0)]
    assert chances(scored(("x", "a", 4.0, 0.0)), {"a": 3.0}) == [("a", 1.0)]


def test_a_patch_has_the_error_of_the_window_of_map_positions_under_it() -> None:
    rng = np.random.default_rng(0)
    mean, window_m2 = (rng.random((6, 9)).astype(np.float32) for _ in range(2))
    maps = RaggedMaps.pack([mean], [mean], [1.0], ["i"], ["a"], 8, 2, 2, [window_m2])
    patches = shard_patches(maps, cell=8, size=16, per_image=3, seed=0)
    found = highest_with_errors(patches, maps, cell=8)
    assert set(found["kind"].to_pylist()) == {HIGHEST}
    assert found.num_rows == 3
    for row in found.to_pylist():
        m2 = window_m2[round(row["y"] / 8), round(row["x"] / 8)]
        assert row["standard_error"] == pytest.approx(math.sqrt(m2 / (8 * 3)), rel=1e-6)


def test_maps_that_were_not_measured_for_it_have_no_errors_of_windows() -> None:
    maps = RaggedMaps.pack(
        [np.zeros((2, 2), np.float32)] * 1, [np.zeros((2, 2), np.float32)], [1.0], ["i"], ["a"], 8
    )
    with pytest.raises(ValueError, match="measured in rounds only"):
        maps.window_error(0)


def test_golden() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"{i // 2}", "ab"[i // 2 % 2], *rng.normal(size=1), 0.3) for i in range(16)]
    highest = scored(*rows)
    found = distances(highest, {"a": 0.25, "b": -0.25})
    label = np.array([label == "b" for _, label in image_rows(highest)], np.int32)
    chosen = undecided(label, found, SHARE)
    assert ALGO == "refinement-2"
    assert np.flatnonzero(chosen).tolist() == [0, 1, 2, 5]
    inf = math.inf
    expected = [0.1242698, 0.3549001, 0.1115951, inf, inf, 0.291326, 0.4687917, 0.4822674]
    np.testing.assert_allclose(found, expected, atol=1e-6)
