"""The steps of Doersch et al. on matches and descriptors made for the purpose."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from diffmining_core.baselines.doersch import (
    ALGO,
    ELEMENT_SCHEMA,
    best_seeds,
    element_patches,
    examples,
    has_contrast,
    overlap,
    random_windows,
    ranking,
    trained_detector,
    with_label,
)
from diffmining_core.baselines.matching import Matches
from diffmining_core.baselines.windows import CELLS
from diffmining_core.patches.scoring import PATCH_SCHEMA


def matches_at(places: list[list[tuple[int, int, int, int]]]) -> Matches:
    array = np.array(places, np.int32)
    scores = np.linspace(1, 0, array.shape[1], dtype=np.float32)
    scores = np.repeat(scores[None], len(array), axis=0)
    return Matches(scores, array)


def test_random_windows_are_different_ones_of_the_grid() -> None:
    windows = random_windows((5, 7), 20, seed=3)
    assert len(set(windows)) == 20
    assert all(0 <= row < 5 and 0 <= column < 7 for row, column in windows)
    assert windows == random_windows((5, 7), 20, seed=3)
    assert windows != random_windows((5, 7), 20, seed=4)
    assert len(random_windows((2, 3), 20, seed=0)) == 6
    assert random_windows((0, 9), 3, seed=0) == random_windows((-2, -3), 3, seed=0) == []


def test_a_flat_window_is_no_seed() -> None:
    pixels = np.full((64, 128, 3), 100, np.uint8)
    pixels[:, 64::8] = 200
    assert not has_contrast(pixels, (0, 0), 64)
    assert has_contrast(pixels, (0, CELLS), 64)


def test_windows_overlap_by_their_cells() -> None:
    assert overlap((3, 4), (3, 4)) == 1
    assert overlap((3, 4), (3, 8)) == pytest.approx(32 / 96)
    assert overlap((0, 0), (8, 0)) == overlap((0, 0), (20, 20)) == 0


def test_a_match_is_right_if_its_image_has_the_detectors_label() -> None:
    found = matches_at([[(0, 0, 0, 0), (1, 1, 0, 0)], [(0, 0, 0, 0), (1, 1, 0, 0)]])
    flags = [np.array([[True, False]]), np.array([[True, False], [True, True]])]
    right = with_label(found, flags, np.array([0, 1]))
    assert right.tolist() == [[True, True], [False, True]]


def test_of_seeds_that_fire_at_the_same_places_the_best_is_kept() -> None:
    def row(shift: int) -> list[tuple[int, int, int, int]]:
        return [(0, image, shift, 0) for image in range(12)]

    elsewhere = [(1, image, 0, 0) for image in range(12)]
    partly = [*row(0)[:5], *[(2, image, 0, 0) for image in range(7)]]
    found = matches_at([row(0), row(1), elsewhere, row(7), partly])
    right = np.zeros((5, 12), bool)
    for seed, count in enumerate((4, 6, 2, 5, 1)):
        right[seed, :count] = True
    # 1 is best and is where 0 is; 3 is 6 cells off, partly shares five places with 0 and 1.
    assert best_seeds(found, right, 10) == [1, 3, 2, 4]
    assert best_seeds(found, right, 2) == [1, 3]


def test_only_the_first_matches_decide_which_seeds_are_good() -> None:
    found = matches_at([[(seed, image, 0, 0) for image in range(30)] for seed in range(2)])
    right = np.zeros((2, 30), bool)
    right[0, 15:] = True  # 5 among the first 20
    right[1, :6] = True
    assert best_seeds(found, right, 2) == [1, 0]
    assert ranking(right).tolist() == [0, 1]  # of all matches 15 and 6
    right[1, 6:15] = True
    assert ranking(right).tolist() == [1, 0]  # 15 each, but of the first 20


def test_a_detector_learns_from_its_best_and_from_what_it_took_for_them() -> None:
    places = np.array([[0, image, 1, 2] for image in range(9)], np.int32)
    right = np.array([True, False, True, True, True, True, True, False, True])
    taught = examples(places, right)
    assert taught.positives == [(0, image, 1, 2) for image in (0, 2, 3, 4, 5)]
    assert taught.taken == [(0, 1, 1, 2), (0, 7, 1, 2)]


def descriptors(count: int, at: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(0, 0.1, (count, 20)).astype(np.float32)
    vectors[:, at] += 1
    unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def test_a_detector_tells_its_windows_from_others_and_is_the_same_each_time() -> None:
    mine, others = descriptors(5, 0, 1), descriptors(60, 1, 2)
    weights, offset = trained_detector(mine, others)
    assert weights.dtype == np.float32
    new = descriptors(20, 0, 3) @ weights + offset
    assert new.min() > (descriptors(20, 1, 4) @ weights + offset).max()
    again, _ = trained_detector(mine, others)
    np.testing.assert_array_equal(weights, again)


def element_table() -> pa.Table:
    rows = [
        # label, element, match, how many with the label of all and the first, image, y, x
        ("oslo", 0, 0, 40, 20, "a", 0, 0),
        ("oslo", 0, 3, 40, 20, "b", 5, 5),
        ("oslo", 1, 0, 30, 18, "a", 4, 4),  # overlaps the better one
        ("oslo", 1, 1, 30, 18, "b", 40, 40),
        ("oslo", 2, 0, 30, 17, "b", 40, 0),  # a third of its image
        ("rome", 0, 0, 50, 20, "a", 2, 2),  # the same image under another label
    ]
    columns = zip(*rows, strict=True)
    counts = ("with_label", "first_with_label")
    names = ("label", "element", "match", *counts, "image_id", "y", "x")
    return (
        pa.table(dict(zip(names, columns, strict=True)))
        .select(ELEMENT_SCHEMA.names)
        .cast(ELEMENT_SCHEMA)
    )


def test_patches_are_the_best_elements_windows_and_none_overlaps_another() -> None:
    table = element_patches(element_table(), size=16, per_image=2)
    assert table.schema == PATCH_SCHEMA
    rows = table.select(["image_id", "label", "rank", "y", "x", "typicality"]).to_pylist()
    assert [tuple(row.values())[:5] for row in rows] == [
        ("a", "oslo", 0, 0, 0),
        ("a", "rome", 0, 2, 2),
        ("b", "oslo", 0, 5, 5),
        ("b", "oslo", 1, 40, 40),
    ]
    scores = [row["typicality"] for row in rows]
    assert scores == pytest.approx(
        [40 + 21 / 22, 50 + 21 / 22, 40 + (21 - 3 / 100) / 22, 30 + (19 - 1 / 100) / 22]
    )
    assert element_patches(element_table().slice(0, 0), 16, 2).num_rows == 0


def test_the_version_stands_for_these_detectors() -> None:
    """What goes wrong here needs another ALGO, and then other numbers."""
    weights, offset = trained_detector(descriptors(5, 0, 1), descriptors(60, 1, 2))
    assert ALGO == "doersch-2 windows-2"
    expected = [0.5759, -0.7826, -0.0134, -0.0157]
    np.testing.assert_allclose(weights[:4], expected, atol=1e-3)
    assert offset == pytest.approx(-0.2084, abs=1e-3)
