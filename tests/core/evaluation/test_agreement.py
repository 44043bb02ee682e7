from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from diffmining_core.evaluation.agreement import RankAgreement, same_patches


def test_maps_are_as_alike_as_their_ranks() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 3, 6, 7))  # image, side, h, w
    images[:, 1] = np.exp(images[:, 0])  # ranks places alike, whatever the values
    whole = RankAgreement.empty(3)
    for maps in images:
        whole = whole.add(list(maps))
    expected = np.mean(
        [spearmanr(maps.reshape(3, -1), axis=1).statistic for maps in images], axis=0
    )
    np.testing.assert_allclose(whole.mean, expected, atol=1e-12)
    assert whole.mean[0, 1] == pytest.approx(1)


def test_a_map_that_is_the_same_everywhere_ranks_nothing() -> None:
    rng = np.random.default_rng(0)
    flat, some = np.zeros((4, 4)), rng.normal(size=(4, 4))
    agreement = RankAgreement.empty(2).add([flat, some])
    with pytest.raises(ValueError, match="at least one image"):
        _ = agreement.mean
    np.testing.assert_allclose(agreement.add([some, -some]).mean, [[1, -1], [-1, 1]])


def selection(*rows: dict[str, Any]) -> pa.Table:
    plain = {"image_id": "a", "label": "x", "kind": "highest", "y": 0, "x": 0, "size": 10}
    return pa.Table.from_pylist([{**plain, **row} for row in rows])


def test_patches_are_the_same_from_two_thirds_of_the_smaller_on() -> None:
    here = selection({})
    assert same_patches(here, selection({"x": 3})) == 1
    assert same_patches(here, selection({"x": 4})) == 0
    assert same_patches(here, selection({"x": 7, "size": 5})) == 0  # 15 of 25
    assert same_patches(here, selection({"x": 5, "size": 5})) == 1
    assert same_patches(selection({"size": 5}), here) == 1
    assert same_patches(here, selection({"image_id": "b"})) == 0
    assert same_patches(here, selection({"label": "y"})) == 0
    assert same_patches(here, selection({"kind": "random"})) == 0


def test_the_share_is_of_the_first_ones_highest_patches() -> None:
    three = selection({}, {"x": 20}, {"x": 40}, {"x": 60, "kind": "lowest"})
    assert same_patches(three, selection({"x": 20})) == pytest.approx(1 / 3)
    assert same_patches(selection({"x": 20}), three) == 1
    assert same_patches(selection({"kind": "lowest"}), three) == 0
