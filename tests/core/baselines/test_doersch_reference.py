"""Reference training against scikit-learn's own SVC, and where its windows come from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.svm import SVC

from diffmining_core.baselines import doersch_reference
from diffmining_core.baselines.doersch import ROUNDS
from diffmining_core.baselines.doersch_reference import (
    ALGO,
    TOLERANCE,
    Halves,
    drawn,
    negatives_wanted,
    positive_windows,
    third,
    trained_detectors,
)
from diffmining_core.baselines.matching import Matches


def test_a_round_sees_a_random_third_of_an_images_windows_and_all_rounds_see_all() -> None:
    parts = [third((7, 9), "a", round_, seed=3) for round_ in range(ROUNDS)]
    assert [len(part) for part in parts] == [21, 21, 21]
    assert sorted(np.concatenate(parts).tolist()) == list(range(63))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert parts[0].tolist() == third((7, 9), "a", 0, seed=3).tolist()
    for other in (third((7, 9), "b", 0, seed=3), third((7, 9), "a", 0, seed=4)):
        assert parts[0].tolist() != other.tolist()
    assert [len(third((2, 2), "a", round_, 0)) for round_ in range(ROUNDS)] == [1, 1, 2]
    assert len(third((-3, -2), "a", 0, 0)) == 0


def test_a_detector_gets_25000_negatives_and_10000_random_ones_at_least() -> None:
    assert negatives_wanted(0) == 25_000
    assert negatives_wanted(4000) == 21_000
    assert negatives_wanted(15_000) == negatives_wanted(40_000) == 10_000
    assert negatives_wanted(7, negatives=50, least=20) == 43


def test_negatives_are_different_windows_of_the_rounds_third_from_all_images_alike() -> None:
    counts = np.array([0, 63, 4, 6300])
    for round_ in range(ROUNDS):
        sizes = [len(third((1, int(count)), "a", round_, 0)) for count in counts]
        image, place = drawn(counts, 10**6, round_, seed=5)
        assert (
            len(image) == len(set(zip(image.tolist(), place.tolist(), strict=True))) == sum(sizes)
        )
        assert Counter(image.tolist()) == {at: n for at, n in enumerate(sizes) if n}
        assert all(0 <= p < sizes[at] for at, p in zip(image, place, strict=True))
        some, _ = drawn(counts, 1000, round_, seed=5)
        assert 0 < (some == 1).sum() < 40
    assert [len(part) for part in drawn(counts[:0], 5, 0, 0)] == [0, 0]
    assert not np.array_equal(drawn(counts, 50, 0, 1)[1], drawn(counts, 50, 0, 2)[1])
    assert not np.array_equal(drawn(counts, 50, 0, 1)[1], drawn(counts, 50, 1, 1)[1])


def test_positives_are_the_best_five_that_were_found() -> None:
    places = np.arange(2 * 7 * 4, dtype=np.int32).reshape(2, 7, 4)
    scores = np.array([[7, 6, 5, 4, 3, 2, 1], [2, 1, *[-np.inf] * 5]], np.float32)
    found = Matches(scores, places)
    assert positive_windows(found, 0) == [tuple(place) for place in places[0, :5].tolist()]
    assert positive_windows(found, 1) == [tuple(place) for place in places[1, :2].tolist()]


def descriptors(count: int, seed: int, mean: float = 0.3) -> Halves:
    """Of unit length and mostly positive, as those of windows."""
    vectors = np.random.default_rng(seed).normal(mean, 0.3, (count, 40))
    unit: Halves = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.half)
    return unit


def whole_svc(positives: Halves, negatives: Halves, c: float) -> SVC:
    right = np.repeat([1, -1], [len(positives), len(negatives)])
    svm = SVC(kernel="linear", C=c, tol=TOLERANCE)
    return svm.fit(np.concatenate([positives, negatives]).astype(np.float64), right)


@pytest.mark.parametrize("c", [0.1, 30])
@pytest.mark.parametrize("working", [4, 128, 1000])
def test_detectors_are_scikit_learns_svc_on_all_negatives(
    c: float, working: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever negatives it is first solved with, and in whichever batches."""
    monkeypatch.setattr(doersch_reference, "WORKING", working)
    monkeypatch.setattr(doersch_reference, "SVM_C", c)
    monkeypatch.setattr(doersch_reference, "_ROWS", 100)
    monkeypatch.setattr(doersch_reference, "_DETECTORS", 2)
    negatives = descriptors(600, 0)
    positives = [descriptors(5, 1), negatives[10:14], descriptors(3, 2, mean=0.1)]
    candidates = [np.arange(600), np.arange(500)[::-1], np.array([3, 599, 7, *range(100, 300)])]
    for one, mine, trained in zip(
        positives, candidates, trained_detectors(positives, negatives, candidates), strict=True
    ):
        svm = whole_svc(one, negatives[mine], c)
        largest = np.abs(svm.coef_).max()
        np.testing.assert_allclose(trained.weights, svm.coef_[0], atol=2e-3 * max(largest, 0.1))
        assert trained.offset == pytest.approx(svm.intercept_[0], abs=1e-3)
        above = mine[svm.decision_function(negatives[mine].astype(np.float64)) > 0]
        assert set(trained.above.tolist()) == set(above.tolist())


def test_the_released_settings_leave_no_negative_hard() -> None:
    """Five positives at C = 0.1 cannot lift a window of unit length above 0: see the docs."""
    negatives = descriptors(400, 0)
    (one,) = trained_detectors([descriptors(5, 7, mean=-0.3)], negatives, [np.arange(400)])
    assert one.offset < -0.5
    assert len(one.above) == 0


def test_negatives_like_the_positives_are_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doersch_reference, "SVM_C", 10)
    negatives: npt.NDArray[np.float16] = descriptors(200, 0)
    positives = np.repeat(negatives[41:42], 5, axis=0)
    (one,) = trained_detectors([positives], negatives, [np.arange(200)])
    assert one.above.tolist() == [41]


def test_the_version_stands_for_these_detectors() -> None:
    """What goes wrong here needs another ALGO, and then other numbers."""
    (one,) = trained_detectors([descriptors(5, 1)], descriptors(300, 0), [np.arange(300)])
    assert ALGO == "doersch-reference-1"
    np.testing.assert_allclose(one.weights[:3], [0.0061, -0.0074, -0.0236], atol=1e-4)
    assert one.offset == pytest.approx(-1.0083, abs=1e-3)
