from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score

from diffmining_core.errors import InputError
from diffmining_core.evaluation.planted import (
    Box,
    PixelScores,
    boxes_by_uri,
    check_truth,
    cluster_purity,
    hits,
    planted_mask,
    score_pixels,
)
from diffmining_core.store.maps import RaggedMaps

TRUTH_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("label", pa.string()),
        ("element", pa.string()),
        ("typical_of", pa.string()),
        *((name, pa.int32()) for name in ("y0", "x0", "y1", "x1")),
    ]
)
# Two images of Rome; b.png also holds an element typical of Oslo, and both a tree.
TRUTH = pa.Table.from_pylist(
    [
        dict(zip(TRUTH_SCHEMA.names, row, strict=True))
        for row in (
            ("rome/a.png", "rome", "roof", "rome", 0, 0, 20, 30),
            ("rome/a.png", "rome", "pole", "rome", 40, 70, 90, 76),
            ("rome/a.png", "rome", "tree", None, 60, 0, 90, 30),
            ("rome/b.png", "rome", "roof", "rome", 10, 10, 30, 40),
            ("rome/b.png", "rome", "sign", "oslo", 60, 60, 80, 80),
        )
    ],
    TRUTH_SCHEMA,
)


def patch_table(rows: list[tuple[str, str, int, int, str, int]]) -> pa.Table:
    names = ("uri", "label", "y", "x", "kind", "cluster")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    return table.append_column("size", pa.array([24] * len(rows), pa.int32()))


def test_a_patch_centred_on_a_box_or_in_it_or_around_it_hits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w = (int(side) for side in rng.integers(3, 60, 2))
        y0, x0 = (int(at) for at in rng.integers(0, 100, 2))
        size = int(rng.integers(8, 40))
        box = Box("pole", "rome", y0, x0, y0 + h, x0 + w)
        assert box.hit_by(y0 + (h - size) // 2, x0 + (w - size) // 2, size)
        at = [min(s, 0) + int(rng.integers(abs(s) + 1)) for s in (h - size, w - size)]
        assert box.hit_by(y0 + at[0], x0 + at[1], size)  # inside or around it on each axis


def test_half_of_the_greatest_overlap_decides() -> None:
    box = Box("roof", "rome", 10, 10, 30, 30)  # 20 × 20: half is 200 px
    assert box.hit_by(20, 0, 30)  # 10 × 20 of it
    assert not box.hit_by(21, 0, 30)
    assert not box.hit_by(-15, -15, 30)  # 5 × 5
    assert not box.hit_by(60, 60, 30)  # apart on both axes: no product of two negatives
    large = Box("roof", "rome", 0, 0, 100, 100)
    assert large.hit_by(-5, 30, 10)
    assert not large.hit_by(-6, 30, 10)


def test_random_patches_hit_about_as_often_as_area_suggests() -> None:
    for h, w, size in ((14, 14, 24), (20, 34, 24), (34, 16, 32)):
        box = Box("roof", "rome", 90, 110, 90 + h, 110 + w)
        positions = np.ndindex(256 - size + 1, 256 - size + 1)
        chance = np.mean([box.hit_by(y, x, size) for y, x in positions])
        assert 0.75 < chance / (max(h, size) * max(w, size) / (256 - size + 1) ** 2) < 1.0


def test_only_elements_of_the_patchs_label_count() -> None:
    a, b = "/data/scenes/rome/a.png", "s3://bucket/scenes/rome/b.png"
    table = patch_table(
        [
            (a, "rome", 0, 3, "highest", 0),  # roof
            (a, "rome", 53, 61, "highest", 0),  # pole
            (a, "rome", 63, 3, "lowest", 0),  # tree, common to all
            (b, "rome", 58, 58, "lowest", 0),  # typical of another label
            (b, "rome", 8, 13, "random", 0),  # roof
            (b, "rome", 60, 10, "random", 0),  # nothing
        ]
    )
    assert hits(table, TRUTH) == {"highest": 1.0, "lowest": 0.0, "random": 0.5}


def test_purity_is_the_share_of_the_commonest_element() -> None:
    a, b = "/data/rome/a.png", "/data/rome/b.png"
    roofs, pole, nothing = [(a, 0, 3), (b, 8, 13)], (a, 53, 61), (b, 60, 10)
    members = [(0, roofs[0]), (0, roofs[1]), (0, pole), (0, nothing), (1, nothing), (2, pole)]
    rows = [(uri, "rome", y, x, "highest", c) for c, (uri, y, x) in members]
    assert cluster_purity(patch_table(rows), TRUTH) == {"rome": [0.5, 0.0, 1.0]}
    assert cluster_purity(patch_table(rows), TRUTH, top=1) == {"rome": [0.5]}


def test_images_find_their_boxes_by_the_end_of_their_address() -> None:
    uris = ["/rome/other/rome/a.png", "s3://x/chrome/a.png", "/data/oslo/c.png"]
    boxes = boxes_by_uri(TRUTH, uris)
    assert [len(boxes[uri]) for uri in uris] == [3, 0, 0]
    with pytest.raises(InputError, match=r"has no box for any.*truth\.parquet"):
        check_truth(TRUTH, uris[1:])
    check_truth(TRUTH, uris)
    assert boxes_by_uri(TRUTH, uris[2:]) == {uris[2]: []}

    nested = TRUTH.slice(0, 1).set_column(0, "file", pa.array(["old/rome/a.png"]))
    both = pa.concat_tables([TRUTH, nested])
    found = boxes_by_uri(both, ["/data/old/rome/a.png", "/data/rome/a.png"])
    assert [len(boxes) for boxes in found.values()] == [1, 3]


def test_the_mask_holds_the_labels_boxes_clipped_to_the_image() -> None:
    boxes = [
        Box("roof", "rome", -3, 2, 2, 5),
        Box("pole", "rome", 3, 4, 9, 99),
        Box("sign", "oslo", 0, 0, 9, 9),
        Box("tree", None, 0, 0, 9, 9),
        Box("roof", "rome", -9, -9, -2, -2),
    ]
    expected = np.zeros((6, 7), bool)
    expected[:2, 2:5] = True
    expected[3:, 4:] = True
    np.testing.assert_array_equal(planted_mask(boxes, "rome", (6, 7)), expected)
    assert not planted_mask(boxes, "bern", (6, 7)).any()


def scored(
    images: list[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]],
) -> PixelScores:
    scores = PixelScores.empty()
    for typicality, mask in images:
        scores = scores.add(typicality, mask)
    return scores


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("gain", [0.0, 0.5, 3.0, -1.0])
def test_average_precision_is_that_of_all_pixels_at_once(scale: float, gain: float) -> None:
    rng = np.random.default_rng(4)
    images = []
    for hw in ((64, 64), (48, 80), (40, 40)):
        mask = rng.random(hw) < 0.08
        images.append((scale * (rng.normal(size=hw) + gain * mask), mask))
    scores = scored(images)
    truth = np.concatenate([mask.ravel() for _, mask in images])
    typicality = np.concatenate([values.ravel() for values, _ in images])
    exact = average_precision_score(truth, typicality)
    assert scores.average_precision == pytest.approx(exact, abs=1e-3)
    assert scores.base_rate == pytest.approx(truth.mean())

    merged = scored(images[1:]).merge(scored(images[:1]))
    assert merged.average_precision == scores.average_precision


def test_ties_count_together_and_zero_has_one_sign() -> None:
    typicality = np.array([[0.0, -0.0, 1.0, -1.0]])
    mask = np.array([[True, False, False, False]])
    scores = scored([(typicality, mask)])
    assert scores.average_precision == average_precision_score(mask[0], typicality[0]) == 1 / 3


def test_average_precision_of_perfect_and_inverted_maps() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:20, 10:20] = True
    assert scored([(np.where(mask, -1.0, -2.0), mask)]).average_precision == 1.0
    assert scored([(np.where(mask, 0.0, 1e-30), mask)]).average_precision == pytest.approx(0.04)


def test_unusable_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one planted pixel"):
        _ = scored([(np.ones((3, 3)), np.zeros((3, 3), bool))]).average_precision
    assert PixelScores.empty().base_rate == 0.0
    for typicality in (np.ones((3, 4)), np.full((3, 3), np.inf)):
        with pytest.raises(ValueError, match="finite and as large"):
            PixelScores.empty().add(typicality, np.ones((3, 3), bool))


def test_a_shard_of_maps_is_scored_at_the_size_of_its_images() -> None:
    values = [np.eye(12, dtype=np.float32), np.ones((10, 11), np.float32)]
    maps = RaggedMaps.pack(values, values, [1.0, 1.0], ["a", "b"], ["rome", "rome"], n_draws=1)
    uris = {("a", "rome"): "/d/rome/a.png", ("b", "rome"): "/d/rome/b.png"}
    scores = score_pixels(maps, uris, TRUTH, cell=8)
    assert scores.planted.sum() == 20 * 30 + 50 * 6 + 20 * 30
    assert (scores.planted + scores.others).sum() == 64 * (12 * 12 + 10 * 11)
    assert scores.planted.nonzero()[0].max() == scores.others.nonzero()[0].max()  # 1 in both
    del uris["b", "rome"]  # it has left the dataset since
    assert score_pixels(maps, uris, TRUTH, cell=8).planted.sum() == 20 * 30 + 50 * 6
