from __future__ import annotations

import hashlib

import numpy as np

from diffmining_core.baselines.random_choice import ALGO, random_choice
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.patches.scoring import PATCH_SCHEMA, image_seed, random_patches

IMAGES = [
    ShardImage(f"{number:032x}", f"/{number}.png", label, 96, 64)
    for number in range(40)
    for label in ("oslo", "rome")[: 1 + (number == 0)]
]


def test_random_patches_are_those_of_the_kind_random() -> None:
    table = random_choice(IMAGES, 64, 12, 5, seed=7)
    assert table.schema == PATCH_SCHEMA
    assert set(table["kind"].to_pylist()) == {"highest"}
    rows = [row for row in table.to_pylist() if row["image_id"] == IMAGES[5].image_id]
    own = random_patches((53, 85), 12, 5, image_seed(7, IMAGES[5].image_id))
    assert [(row["y"], row["x"]) for row in rows] == own


def test_scores_are_random_and_depend_on_image_label_and_seed_alone() -> None:
    table = random_choice(IMAGES, 64, 12, 5, seed=7)
    scores = table["typicality"].to_numpy()
    assert 0 <= scores.min() < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.06  # three standard errors of 205 numbers
    assert (np.diff(scores.reshape(-1, 5), axis=1) <= 0).all()
    assert scores[:5].tolist() != scores[5:10].tolist()  # one image under two labels
    alone = random_choice(IMAGES[8:9], 64, 12, 5, seed=7)
    assert alone.to_pylist() == table.slice(8 * 5, 5).to_pylist()
    assert random_choice(IMAGES[8:9], 64, 12, 5, seed=8) != alone


def test_an_image_smaller_than_a_patch_has_none() -> None:
    assert random_choice(IMAGES, 64, 80, 5, seed=7).num_rows == 0


def test_the_version_stands_for_these_patches() -> None:
    """What goes wrong here needs another ALGO, and then another digest."""
    rows = random_choice(IMAGES[:3], 64, 12, 2, seed=1).to_pylist()
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    assert (ALGO, digest) == ("random-1", "fa426cd79efefc98")
