from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import patch_scores, pick_patches, upsample_bilinear
from diffmining_core.patches.sequences import SEQUENCE_SCHEMA
from diffmining_core.translation.cotypicality import (
    ALGO,
    ParallelMaps,
    cotypicality,
    image_sequences,
    sequence_table,
)

CELL, SIZE = 8, 20
HW = (9 * CELL, 12 * CELL)
"""Of the images whose maps `maps` makes."""
LABELS = ("oslo", "rome", "paris")
GOLDEN = [0.0919699, 0.0779112, 0.0770467]


def maps(seed: int = 0, hw: tuple[int, int] = (9, 12)) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {label: rng.normal(size=hw).astype(np.float32) for label in LABELS}


def parallel(of: Mapping[str, Any], *own: str) -> ParallelMaps:
    return ParallelMaps("image", own or ("rome",), of)


def test_it_is_the_median_over_labels_of_the_patch_scores() -> None:
    of = maps()
    scores = [patch_scores(one, HW, SIZE) for one in of.values()]
    found = cotypicality(of.values(), HW, SIZE)
    np.testing.assert_array_equal(found, np.median(scores, axis=0))
    assert found.dtype == np.float32
    assert found.shape == (9 * CELL - SIZE + 1, 12 * CELL - SIZE + 1)


def test_of_an_even_number_of_labels_it_is_the_mean_of_the_middle_two() -> None:
    flat = [np.full((2, 3), value, np.float32) for value in (5, -1, 2, 3)]
    np.testing.assert_array_equal(cotypicality(flat, (2, 3), 2), np.full((1, 2), 2.5))


def test_labels_agree_on_patches_not_on_positions() -> None:
    """Left each label has a 4 at a place of its own, so its patch scores 1, and no position has a
    median above 0; right every position of every label has 0.5. The median of maps picks the right
    patch first, the median of scores the left one."""
    of = {label: np.zeros((2, 7), np.float32) for label in LABELS}
    for place, one in enumerate(of.values()):
        one[divmod(place, 2)] = 4
        one[:, 4:6] = 0.5
    left, right = image_sequences(parallel(of), 1, 2, 2)
    assert (left["y"], left["x"], left["cotypicality"]) == (0, 0, 1)
    assert left["typicality"] == [1, 1, 1]
    assert (right["y"], right["x"], right["cotypicality"]) == (0, 4, 0.5)
    of_maps = patch_scores(np.median(list(of.values()), axis=0), (2, 7), 2)
    assert pick_patches(of_maps, 2, 1) == [(0, 4)]


def test_the_scores_of_all_labels_are_never_held_at_once() -> None:
    of = {str(place): np.full((64, 64), place, np.float32) for place in range(40)}
    tracemalloc.start()
    try:
        cotypicality(of.values(), (1024, 1024), 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 961 * 961 * 4 / 2


def test_the_order_of_labels_does_not_matter() -> None:
    of = maps()
    forwards = image_sequences(parallel(of), CELL, SIZE, 5)
    backwards = image_sequences(parallel(dict(reversed(of.items()))), CELL, SIZE, 5)
    for one, other in zip(forwards, backwards, strict=True):
        assert {name: one[name] for name in ("y", "x", "cotypicality")} == {
            name: other[name] for name in ("y", "x", "cotypicality")
        }
        assert dict(zip(one["labels"], one["typicality"], strict=True)) == dict(
            zip(other["labels"], other["typicality"], strict=True)
        )


def test_what_one_label_alone_finds_typical_is_not_picked() -> None:
    of = {label: np.zeros((10, 10), np.float32) for label in LABELS}
    of["rome"][1, 1] = 100
    of["rome"][7, 7] = of["oslo"][7, 7] = of["paris"][7, 7] = 1
    (first, *_) = image_sequences(parallel(of), CELL, 8, 1)
    assert (first["y"], first["x"]) == (56, 56)


def test_sequences_are_scored_as_patches_are() -> None:
    of = maps(1)
    table = sequence_table([parallel(of)], CELL, SIZE, 4)
    assert table.schema == SEQUENCE_SCHEMA
    assert table["rank"].to_pylist() == [0, 1, 2, 3]
    for row in table.to_pylist():
        square = (slice(row["y"], row["y"] + SIZE), slice(row["x"], row["x"] + SIZE))
        assert row["cotypicality"] == pytest.approx(np.median(row["typicality"]), rel=1e-6)
        assert row["labels"] == list(LABELS)
        for label, typicality in zip(row["labels"], row["typicality"], strict=True):
            expected = upsample_bilinear(of[label], HW)[square].mean()
            assert typicality == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_patches_of_an_image_do_not_overlap() -> None:
    places = [(row["y"], row["x"]) for row in image_sequences(parallel(maps(2)), CELL, SIZE, 5)]
    assert len(places) > 1
    for i, (y, x) in enumerate(places):
        assert all(abs(y - v) > SIZE or abs(x - u) > SIZE for v, u in places[:i])


def test_an_image_of_several_labels_is_itself_under_each() -> None:
    rows = image_sequences(parallel(maps(), "rome", "oslo"), CELL, SIZE, 1)
    assert rows[0]["label"] == "rome"
    assert rows[0]["own"] == ["oslo", "rome"]


def test_an_image_smaller_than_a_patch_has_none() -> None:
    assert image_sequences(parallel(maps(hw=(2, 9))), CELL, SIZE, 5) == []
    assert sequence_table([], CELL, SIZE, 5).schema == SEQUENCE_SCHEMA


def test_maps_of_several_shapes_or_that_are_not_finite_are_named() -> None:
    other = {**maps(), "paris": np.zeros((9, 11), np.float32)}
    with pytest.raises(InputError, match=r"image image \(label rome\).*should have one shape"):
        image_sequences(parallel(other), CELL, SIZE, 5)
    broken = maps()
    broken["oslo"][3, 3] = np.nan
    with pytest.raises(InputError, match="under 'oslo' should be finite"):
        image_sequences(parallel(broken), CELL, SIZE, 5)
    with pytest.raises(ValueError, match="should have one shape"):
        cotypicality([], HW, SIZE)


def test_golden() -> None:
    """Other sequences under the same ALGO would mix with those stored: raise it with them."""
    i = np.arange(80, dtype=np.float32).reshape(8, 10)
    of = {label: np.sin(i * (3 + place)) for place, label in enumerate(LABELS)}
    table = sequence_table([parallel(of)], CELL, SIZE, 3)
    places = list(zip(*(table[name].to_pylist() for name in ("y", "x")), strict=True))
    assert (ALGO, places) == ("cotypicality-2", [(31, 60), (0, 59), (0, 26)])
    np.testing.assert_allclose(table["cotypicality"], GOLDEN, atol=1e-6)


def test_the_table_keeps_images_in_their_order() -> None:
    images = [ParallelMaps(name, ("oslo",), maps(seed)) for seed, name in enumerate("cab")]
    table = sequence_table(images, CELL, SIZE, 2)
    assert table["image_id"].to_pylist() == list("ccaabb")
    assert isinstance(table, pa.Table)
