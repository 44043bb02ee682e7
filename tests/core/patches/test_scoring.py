from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import (
    ALGO,
    IMAGE_SCHEMA,
    KINDS,
    PATCH_SCHEMA,
    image_patches,
    image_typicality,
    patch_scores,
    pick_patches,
    random_patches,
    shard_patches,
    too_small,
    upsample_bilinear,
)
from diffmining_core.store.maps import RaggedMaps

Map = npt.NDArray[np.float32]

# (map, image, patch): the tiny model, 8-px cells, image sizes that are no multiple of the map's,
# a map of one row, a patch as large as the image, full size
SHAPES = [
    ((16, 16), (64, 64), 16),
    ((9, 14), (72, 112), 24),
    ((5, 7), (33, 45), 10),
    ((1, 6), (8, 48), 8),
    ((4, 4), (32, 32), 32),
    ((64, 94), (512, 752), 64),  # a street view
]


def ragged(maps: list[Map]) -> RaggedMaps:
    image_id = [f"{i:032x}" for i in range(len(maps))]
    label = [("rome", "oslo")[i % 2] for i in range(len(maps))]
    m2s = [np.zeros_like(m) for m in maps]
    return RaggedMaps.pack(maps, m2s, [1.0] * len(maps), image_id, label, n_draws=8)


def random_maps(n: int, seed: int = 0) -> list[Map]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(0, 1e-3, (rng.integers(6, 12), rng.integers(6, 12))).astype(np.float32)
        for _ in range(n)
    ]


def torch_upsampled(m: Map, hw: tuple[int, int]) -> torch.Tensor:
    batch = torch.from_numpy(m.astype(np.float64))[None, None]
    return F.interpolate(batch, size=hw, mode="bilinear", align_corners=False)


def brute_force_picks(
    scores: npt.NDArray[np.float64], size: int, count: int
) -> list[tuple[int, int]]:
    """Every window in order of score, then position; kept unless it is too near a kept one."""
    rows, columns = scores.shape
    candidates = sorted((-scores[y, x], y, x) for y in range(rows) for x in range(columns))
    kept: list[tuple[int, int]] = []
    for _, y, x in candidates:
        if len(kept) < count and all(abs(y - v) > size or abs(x - u) > size for v, u in kept):
            kept.append((y, x))
    return kept


@pytest.mark.parametrize(("map_hw", "image_hw", "size"), SHAPES)
def test_upsampling_and_scores_are_torchs(
    map_hw: tuple[int, int], image_hw: tuple[int, int], size: int
) -> None:
    m = np.random.default_rng(1).normal(size=map_hw).astype(np.float32)
    expected = torch_upsampled(m, image_hw)
    torch.testing.assert_close(
        torch.from_numpy(upsample_bilinear(m, image_hw)), expected[0, 0], rtol=0, atol=1e-12
    )

    scores = patch_scores(m, image_hw, size)
    assert scores.dtype == np.float32
    torch.testing.assert_close(
        torch.from_numpy(scores),
        F.avg_pool2d(expected, size, stride=1)[0, 0].to(torch.float32),
        rtol=0,
        atol=1e-6,
    )


def test_a_score_is_the_mean_over_pixels_of_a_blend_of_four_cells() -> None:
    """By the definition, pixel by pixel: pixel i lies at (i + ½) / 8 − ½ of the cells, held in."""
    m = np.random.default_rng(4).normal(size=(9, 12)).astype(np.float32)
    scores = patch_scores(m, (72, 96), 20)

    def blend(pixel: int, cells: int) -> list[tuple[int, float]]:
        at = min(max((pixel + 0.5) / 8 - 0.5, 0.0), cells - 1.0)
        first = min(int(at), cells - 2)
        return [(first, 1 - (at - first)), (first + 1, at - first)]

    for y, x in [(0, 0), (52, 76), (3, 50), (31, 0), (17, 76)]:
        total = 0.0
        for row in range(y, y + 20):
            for column in range(x, x + 20):
                for r, weight_r in blend(row, 9):
                    for c, weight_c in blend(column, 12):
                        total += weight_r * weight_c * float(m[r, c])
        assert scores[y, x] == pytest.approx(total / 400, abs=1e-7)  # half a float32 step at 1


def test_windows_at_the_bottom_and_right_edges_are_candidates() -> None:
    m = np.zeros((6, 9), np.float32)
    m[-1, -1] = 1
    scores = patch_scores(m, (48, 72), 8)
    assert scores.shape == (41, 65)
    assert pick_patches(scores, 8, 1) == [(40, 64)]


def test_picks_are_those_of_the_brute_force() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        shape = tuple(rng.integers(1, 25, 2))
        size, count = int(rng.integers(1, 9)), int(rng.integers(1, 7))
        # Few distinct values, so that ties decide.
        scores = rng.integers(0, 4, shape).astype(np.float64)
        assert pick_patches(scores, size, count) == brute_force_picks(scores, size, count)
        assert pick_patches(scores, size, count, highest=False) == brute_force_picks(
            -scores, size, count
        )


def test_a_flat_map_ties_exactly_and_goes_in_row_major_order() -> None:
    m = np.full((8, 8), 0.1, np.float32)
    scores = patch_scores(m, (64, 64), 20)
    assert (scores == np.float32(0.1)).all()
    for highest in (True, False):
        picks = pick_patches(scores, 20, 5, highest)
        assert picks == [(0, 0), (0, 21), (0, 42), (21, 0), (21, 21)]


def test_fewer_patches_when_no_more_fit() -> None:
    assert pick_patches(np.zeros((21, 21)), 20, 5) == [(0, 0)]
    assert pick_patches(np.zeros((22, 21)), 20, 5) == [(0, 0), (21, 0)]
    assert pick_patches(np.zeros((0, 5)), 20, 5) == []


def test_random_patches_are_seeded_uniform_and_apart() -> None:
    assert random_patches((40, 40), 8, 5, seed=3) == random_patches((40, 40), 8, 5, seed=3)
    first = np.array([random_patches((40, 60), 8, 5, seed=s)[0] for s in range(400)])
    assert abs(first.mean(axis=0) - [19.5, 29.5]).max() < 3  # 3.5 standard errors
    for s in range(20):
        picks = random_patches((40, 60), 8, 5, seed=s)
        apart = [
            abs(a - c) > 8 or abs(b - d) > 8 for i, (a, b) in enumerate(picks) for c, d in picks[:i]
        ]
        assert len(picks) == 5
        assert all(apart)


def test_a_shard_gives_what_its_images_give() -> None:
    maps = ragged(random_maps(40))
    table = shard_patches(maps, cell=8, size=20, per_image=3, seed=5)
    assert table.schema == PATCH_SCHEMA
    expected = [
        (maps.image_id[i], maps.label[i], kind, rank, y, x, 20, typicality)
        for i in range(40)
        for kind, rank, y, x, typicality in image_patches(
            maps.map(i), maps.image_id[i], 8, 20, 3, 5
        )
    ]
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == expected
    assert {row[2] for row in rows} == set(KINDS)

    for row in table.slice(0, 30).to_pylist():
        m = maps.map(int(row["image_id"], 16))
        y, x, size = row["y"], row["x"], row["size"]
        window = upsample_bilinear(m, (8 * m.shape[0], 8 * m.shape[1]))[y : y + size, x : x + size]
        assert window.shape == (size, size)
        assert row["typicality"] == pytest.approx(window.mean(), rel=1e-5, abs=1e-9)


def test_the_order_of_images_and_their_company_change_nothing() -> None:
    maps = random_maps(20)
    whole = ragged(maps)
    reverse = RaggedMaps.pack(
        maps[::-1], maps[::-1], [1.0] * 20, whole.image_id[::-1], whole.label[::-1], n_draws=8
    )
    keys = [("image_id", "ascending"), ("kind", "ascending"), ("rank", "ascending")]
    tables = [shard_patches(m, 8, 20, 3, seed=5).sort_by(keys) for m in (whole, reverse)]
    assert tables[0].equals(tables[1])


def test_images_smaller_than_a_patch_have_none_and_are_named() -> None:
    maps = random_maps(3)
    maps[1] = np.ones((2, 30), np.float32)  # 16 px high
    shard = ragged(maps)
    table = shard_patches(shard, cell=8, size=17, per_image=2, seed=0)
    assert set(table["image_id"].to_pylist()) == {shard.image_id[0], shard.image_id[2]}
    assert too_small(shard, cell=8, size=17) == [shard.image_id[1]]
    assert too_small(shard, cell=8, size=16) == []


def test_an_empty_shard_and_one_of_small_images_give_an_empty_table() -> None:
    for shard in (ragged([]), ragged([np.ones((2, 2), np.float32)])):
        table = shard_patches(shard, cell=8, size=50, per_image=5, seed=0)
        assert table.schema == PATCH_SCHEMA
        assert table.num_rows == 0


def test_a_map_that_is_not_finite_is_refused_by_name() -> None:
    maps = random_maps(2)
    maps[1][3, 3] = np.nan
    with pytest.raises(InputError, match=r"image 00000000000000000000000000000001 .*finite"):
        shard_patches(ragged(maps), cell=8, size=20, per_image=2, seed=0)


def test_an_images_typicality_is_the_mean_of_its_map() -> None:
    maps = [np.full((2, 3), 0.5, np.float32), np.arange(4, dtype=np.float32).reshape(2, 2)]
    table = image_typicality(ragged(maps))
    assert table.schema == IMAGE_SCHEMA
    assert table["typicality"].to_pylist() == [0.5, 1.5]
    assert image_typicality(ragged([])).schema == IMAGE_SCHEMA


def test_golden() -> None:
    """Other picks under the same ALGO would mix with those already stored: raise it with them."""
    y, x = np.mgrid[:13, :17]
    m = (np.sin(0.9 * y) * np.cos(0.7 * x) + 0.1 * np.sin(5 * x * y)).astype(np.float32)
    table = shard_patches(ragged([m, m.T]), cell=8, size=24, per_image=5, seed=0)
    picks = str([table[name].to_pylist() for name in ("kind", "rank", "y", "x")])
    means = image_typicality(ragged([m, m.T]))["typicality"].to_pylist()
    picks += f"{means[0]:.5e}"
    assert (ALGO, hashlib.sha256(picks.encode()).hexdigest()[:16]) == (
        "patches-2",
        "839799e7ea14c4d6",
    )
