from __future__ import annotations

import numpy as np

from diffmining_core.report.likeness import cluster_likeness, most_alike, unit_length


def at(*degrees: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_nearest_by_angle_come_first_and_length_says_nothing() -> None:
    features = at(0, 10, 50, 180) * np.array([[1], [9], [0.1], [3]], np.float32)
    assert most_alike(features, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert most_alike(features, 9).shape == (4, 3), "no more than there are others"
    assert most_alike(at(5), 3).shape == (1, 0)


def test_a_feature_of_no_length_stays() -> None:
    assert unit_length(np.zeros((1, 2), np.float32)).tolist() == [[0, 0]]


def test_a_cluster_finds_the_nearest_of_each_other_label() -> None:
    found = cluster_likeness(
        [
            ("a", [0, 0, 1], at(0, 20, 90)),  # means at 10 and 90 degrees
            ("b", [0, 1], at(12, 80)),
            ("c", [0], at(200)),
        ]
    )
    (first, second) = found.elsewhere("a", 0, 3)
    assert (first.label, first.cluster, second.label) == ("b", 0, "c")
    assert first.likeness > 0.99
    assert [other.label for other in found.elsewhere("a", 1, 1)] == ["b"]
    assert found.elsewhere("a", 1, 1)[0].cluster == 1
    assert found.elsewhere("a", 7, 3) == []
    assert cluster_likeness([]).elsewhere("a", 0, 3) == []
