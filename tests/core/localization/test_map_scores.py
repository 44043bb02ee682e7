"""Scores of one map against its mask, beside scikit-learn, closed forms and the official rule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import auc, average_precision_score

from diffmining_core.localization.scores import ALGO, SCORE_SCHEMA, map_score, score_table

Map = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def noisy(seed: int = 0, scale: float = 1e-3, digits: int = 6) -> tuple[Map, Mask]:
    """A map that helps somewhat, with many ties where it has few digits."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 40), bool)
    mask[5:15, 8:20] = True
    return scale * (rng.normal(size=mask.shape) + mask).round(digits), mask


@pytest.mark.parametrize("digits", [1, 6])
def test_average_precision_is_scikit_learns(digits: int) -> None:
    typicality, mask = noisy(digits=digits)
    expected = average_precision_score(mask.ravel(), typicality.ravel().astype(np.float32))
    assert map_score(typicality, mask).average_precision == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_a_small_map_by_hand() -> None:
    typicality = np.array([[4.0, 3.0], [2.0, 2.0], [-1.0, -5.0]])
    mask = np.array([[True, False], [True, False], [True, False]])
    # The ranks of the true pixels are 1; 2 of the 4 that are at 2 or above; 3 of the 5 at -1 or so.
    assert map_score(typicality, mask).average_precision == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_a_perfect_ranking_scores_one_wherever_zero_lies() -> None:
    _, mask = noisy()
    for shift in (-1.0, 0.0, 1.0):
        assert map_score(mask + shift, mask).average_precision == 1


def test_a_map_without_information_scores_by_chance() -> None:
    _, mask = noisy()
    score = map_score(np.zeros(mask.shape), mask)
    assert score.chance == mask.mean() == 0.125
    assert score.average_precision == score.chance
    means = [
        map_score(np.random.default_rng(seed).normal(size=mask.shape), mask).average_precision
        for seed in range(40)
    ]
    assert np.mean(means) == pytest.approx(0.125, abs=0.01)


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e-2])
def test_the_official_number_is_the_released_formula(scale: float) -> None:
    """Threshold by threshold, as it is described: 2·10^-s for s = 2 … 7 in 1000 steps."""
    typicality, mask = noisy(seed=3, scale=scale)
    typicality = typicality.astype(np.float32).astype(np.float64)
    precisions, recalls = [], []
    for s in np.linspace(2, 7, 1000):
        fires = typicality > 2 * 10**-s
        precisions.append((fires & mask).sum() / fires.sum() if fires.any() else 0.0)
        recalls.append((fires & mask).sum() / mask.sum())
    expected = auc(recalls, precisions)
    assert map_score(typicality, mask).official_auc_pr == pytest.approx(expected, abs=1e-12)


def test_the_official_number_depends_on_the_scale_and_is_blind_below_zero() -> None:
    typicality, mask = noisy()
    ordinary = map_score(typicality, mask)
    huge, negative = map_score(1e3 * (typicality + 1), mask), map_score(typicality - 1, mask)
    assert ordinary.official_auc_pr > 0.05
    # Everything fires at every threshold, or nothing ever does: there is no curve.
    assert huge.official_auc_pr == negative.official_auc_pr == 0
    assert huge.average_precision == pytest.approx(ordinary.average_precision, abs=0.01)
    assert negative.average_precision == pytest.approx(ordinary.average_precision, abs=0.01)


@pytest.mark.parametrize(
    ("typicality", "mask"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), bool)),
        (np.zeros((2, 3)), np.ones((2, 2), bool)),
        (np.full((2, 2), np.nan), np.ones((2, 2), bool)),
    ],
)
def test_nothing_to_find_another_shape_and_no_number_are_errors(
    typicality: Map, mask: Mask
) -> None:
    with pytest.raises(ValueError, match="as large as the mask"):
        map_score(typicality, mask)


def test_a_table_has_a_row_for_each_side() -> None:
    typicality, mask = noisy()
    names = {"image_id": "a", "uri": "/a.png", "label": "crack"}
    by_side = {"before": map_score(-typicality, mask), "after": map_score(typicality, mask)}
    table = score_table([(names, by_side)])
    assert table.schema == SCORE_SCHEMA
    assert [row["side"] for row in table.to_pylist()] == ["before", "after"]
    assert table["average_precision"][1].as_py() == by_side["after"].average_precision
    assert score_table([]).num_rows == 0


def test_scores_are_those_of_their_version() -> None:
    """Another number here wants another ALGO: stored scores would else pass for these."""
    score = map_score(*noisy(seed=7))
    assert ALGO == "localization-1"
    assert score.chance == 0.125
    assert score.average_precision == pytest.approx(0.34930, abs=1e-5)
    assert score.official_auc_pr == pytest.approx(0.30292, abs=1e-5)
