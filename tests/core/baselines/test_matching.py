"""The best windows of detectors against a search through everything."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest

from diffmining_core.baselines import matching
from diffmining_core.baselines.matching import ALGO, Detectors, Matches, shard_matches
from diffmining_core.baselines.windows import CHANNELS, DIMENSIONS, all_descriptors, window_grid


def random_cells(count: int, seed: int = 0) -> list[npt.NDArray[np.float16]]:
    rng = np.random.default_rng(seed)
    shapes = [(rng.integers(8, 12), rng.integers(8, 12), CHANNELS) for _ in range(count)]
    return [rng.random(shape).astype(np.half) for shape in shapes]


def random_detectors(count: int, seed: int = 1) -> Detectors:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
    return Detectors(weights, rng.normal(size=count).astype(np.float32))


def test_each_detector_gets_the_best_window_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "DETECTORS_AT_ONCE", 2)
    monkeypatch.setattr(matching, "IMAGES_AT_ONCE", 3)
    images, detectors = random_cells(8), random_detectors(5)
    seen = []
    found = shard_matches(images, detectors, 4, on_image=lambda: seen.append(1))
    assert len(seen) == 8
    assert found.scores.shape == (5, 4)
    for number in range(5):
        expected = []
        for image, cells in enumerate(images):
            scores = all_descriptors(cells) @ detectors.weights[number]
            place = divmod(int(scores.argmax()), window_grid(cells)[1])
            expected.append((-scores.max() - detectors.offsets[number], (0, image, *place)))
        expected.sort()
        np.testing.assert_allclose(
            found.scores[number], [-score for score, _ in expected[:4]], atol=1e-5
        )
        assert [tuple(place) for place in found.places[number].tolist()] == [
            place for _, place in expected[:4]
        ]


def test_shards_add_up_in_any_order_to_what_all_images_give() -> None:
    images, detectors = random_cells(7), random_detectors(3)
    whole = shard_matches(images, detectors, 5)
    parts = [shard_matches(some, detectors, 5) for some in (images[:3], images[3:6], images[6:])]
    numbered = [part.of_shard(number) for number, part in enumerate(parts)]
    merged = [Matches.none(3), Matches.none(3)]
    for part in numbered:
        merged[0] = merged[0].merge(part, 5)
    for part in reversed(numbered):
        merged[1] = part.merge(merged[1], 5)
    starts = [0, 3, 6]
    for one in merged:
        np.testing.assert_array_equal(one.scores, whole.scores)
        image = np.take(starts, one.places[..., 0]) + one.places[..., 1]
        np.testing.assert_array_equal(image, whole.places[..., 1])
    np.testing.assert_array_equal(merged[0].places, merged[1].places)


def test_equal_scores_come_by_their_place() -> None:
    cells = random_cells(1)[0]
    found = shard_matches([cells, cells, cells], random_detectors(2), 2)
    assert found.places[..., matching.IMAGE].tolist() == [[0, 1], [0, 1]]
    later = found.merge(found.of_shard(1), 3)
    assert later.places[..., :2].tolist() == [[[0, 0], [0, 1], [1, 0]]] * 2


def test_only_the_windows_that_are_searched_match() -> None:
    images, detectors = random_cells(3), random_detectors(4)
    searched = [np.array([1, 4, 5]), np.array([0, 2]), np.array([], np.intp)]
    found = shard_matches(images, detectors, 5, searched=searched)
    assert found.scores.shape == (4, 2)  # of the third image no window
    for number, weights in enumerate(detectors.weights):
        for score, (_, image, row, column) in zip(
            found.scores[number], found.places[number].tolist(), strict=True
        ):
            own = all_descriptors(images[image])[searched[image]] @ weights
            window = row * window_grid(images[image])[1] + column
            assert window == searched[image][own.argmax()]
            assert score == pytest.approx(own.max() + detectors.offsets[number], abs=1e-5)


def test_images_without_a_window_match_nothing() -> None:
    small = np.zeros((7, 9, CHANNELS), np.half)
    found = shard_matches([small, *random_cells(1)], random_detectors(2), 5)
    assert found.places[..., matching.IMAGE].tolist() == [[1], [1]]
    assert shard_matches([], random_detectors(2), 5).scores.shape == (2, 0)


def test_the_product_on_a_torch_device_is_the_same() -> None:
    """`meta` has no numbers and there may be no GPU: the CPU, named so that torch is used."""
    images, detectors = random_cells(2), random_detectors(4)
    here = shard_matches(images, detectors, 3)
    there = shard_matches(images, detectors, 3, device="cpu:0")
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-5)
    np.testing.assert_array_equal(there.places, here.places)


def test_the_version_stands_for_these_matches() -> None:
    """What goes wrong here needs another ALGO, and then another digest."""
    found = shard_matches(random_cells(4), random_detectors(3), 2)
    digest = hashlib.sha256(found.places.tobytes()).hexdigest()[:16]
    assert (ALGO, digest) == ("matching-1", "732e0796e71f0c29")
