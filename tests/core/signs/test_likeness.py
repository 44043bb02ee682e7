from __future__ import annotations

import numpy as np
import pytest

from diffmining_core.signs.likeness import (
    NEIGHBOURS,
    LabelFeatures,
    foreign_share,
    likeness_signs,
    most_alike,
)


def label(name: str, centres: tuple[int, ...], n: int = 80, seed: int = 0) -> LabelFeatures:
    """Unit vectors around centres of which each is one axis of 16."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    points = np.eye(16)[rng.choice(centres, n)] + 0.15 * rng.standard_normal((n, 16))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    ids = np.array([f"{name} {i // 2}" for i in range(n)])
    return LabelFeatures(name, points.astype(np.float32), ids)


def test_labels_of_one_kind_are_named_and_others_are_not() -> None:
    labels = [label("barn", (0, 1, 2)), label("byre", (0, 1, 2)), label("tower", (2, 3, 4))]
    alike = most_alike(labels)
    assert (alike[0].a, alike[0].b) == ("barn", "byre")
    assert alike[0].share == pytest.approx(0.5, abs=0.08)
    assert all(pair.share < 0.3 for pair in alike[1:])
    ((sign, pair),) = likeness_signs(alike)
    assert sign.name == "alike"
    assert "barn and byre" in sign.evidence
    assert len(pair.nearest) == 6
    assert len({i for i, _ in pair.nearest}) == len({j for _, j in pair.nearest}) == 6


def test_the_share_does_not_depend_on_how_many_patches_each_label_has() -> None:
    (pair,) = most_alike([label("barn", (0, 1), n=200), label("byre", (0, 1), n=40)])
    assert pair.share == pytest.approx(0.5, abs=0.08)


def test_the_share_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    own, across = rng.random((9, 9)), rng.random((9, 8))
    np.fill_diagonal(own, np.inf)
    foreign = 0
    for row in range(9):
        columns = np.linspace(0, 8, 8).round().astype(int)
        candidates = [(own[row, j], 0) for j in columns] + [(across[row, j], 1) for j in range(8)]
        foreign += sum(side for _, side in sorted(candidates)[:NEIGHBOURS])
    assert foreign_share(own, across) == foreign / (9 * NEIGHBOURS)


def test_an_image_of_both_labels_makes_them_no_more_alike() -> None:
    barn, tower = label("barn", (0, 1)), label("tower", (3, 4))
    shared = barn.features[:20]
    joined = LabelFeatures(
        "tower",
        np.concatenate([tower.features, shared]),
        np.concatenate([tower.image_ids, barn.image_ids[:20]]),
    )
    (pair,) = most_alike([barn, joined])
    assert pair.share < 0.2


def test_one_label_alone_and_labels_of_few_patches_are_like_none() -> None:
    assert most_alike([label("barn", (0,))]) == []
    assert most_alike([label("barn", (0,), n=5), label("byre", (0,), n=5)]) == []
    assert most_alike([]) == []
