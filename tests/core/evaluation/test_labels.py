from __future__ import annotations

import numpy as np
import pytest

from diffmining_core.evaluation.labels import label_accuracy


def test_accuracy_of_known_choices() -> None:
    sums = np.array([[3.0, 1.0, 2.0], [0.0, -1.0, -2.0], [-5.0, -4.0, -6.0], [0.0, 0.0, 1.0]])
    result = label_accuracy(sums, np.array([0, 0, 0, 2]))
    assert result == {
        "accuracy": 0.75,
        "standard_error": pytest.approx(np.sqrt(0.75 * 0.25 / 4)),
        "chance": pytest.approx(1 / 3),
    }


def test_sums_without_information_score_at_chance() -> None:
    label_index = np.array([0, 0, 0, 1])
    assert label_accuracy(np.zeros((4, 4)), label_index)["accuracy"] == 0.25

    rng = np.random.default_rng(0)
    result = label_accuracy(rng.normal(size=(4000, 5)), np.zeros(4000, int))
    assert abs(result["accuracy"] - result["chance"]) < 4 * result["standard_error"]
    assert result["standard_error"] == pytest.approx(np.sqrt(0.2 * 0.8 / 4000), rel=0.05)


def test_unusable_sums_are_refused() -> None:
    for sums, n in ((np.zeros((0, 3)), 0), (np.zeros((2, 3)), 3), (np.full((2, 3), np.nan), 2)):
        with pytest.raises(ValueError, match=r"want|finite"):
            label_accuracy(sums, np.zeros(n, int))
