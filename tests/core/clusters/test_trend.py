from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffmining_core.clusters.trend import (
    ALGO,
    TREND_SCHEMA,
    Movement,
    lab_of,
    mean_patch,
    movements,
    patch_colour,
    srgb_of,
    trend_table,
)

# sRGB bytes -> CIELAB under D65, as published in many places.
KNOWN = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (119, 119, 119): (50.03, 0.0, 0.0),
    (5, 5, 5): (1.37, 0.0, 0.0),  # on the line below the knee
}


@pytest.mark.parametrize(("srgb", "lab"), KNOWN.items())
def test_known_colours(srgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(lab_of(np.array(srgb, np.uint8)), lab, atol=0.02)


def test_there_and_back_is_the_same_colour() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    np.testing.assert_array_equal(srgb_of(lab_of(colours)), colours)


def test_a_colour_that_no_screen_shows_is_clipped() -> None:
    np.testing.assert_array_equal(srgb_of(np.array([60.0, 200.0, 0.0]))[[0]], [255])


def test_the_colour_of_a_patch_is_the_mean_in_cielab() -> None:
    patch = np.zeros((4, 4, 3), np.uint8)
    patch[:, :2] = 255
    colour = patch_colour(patch)
    assert colour.dtype == np.float32
    np.testing.assert_allclose(colour, [50, 0, 0], atol=1e-3)
    assert srgb_of(colour)[0] == 119  # mid grey to the eye, not 128


def test_the_mean_patch_is_that_of_each_pixel() -> None:
    patches = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 60)]
    patches[0][1, 2] = (0, 100, 250)
    mean = mean_patch(patches)
    assert mean.dtype == np.uint8
    assert mean[0, 0].tolist() == [30, 30, 30]
    assert mean[1, 2].tolist() == [27, 60, 110]
    assert mean_patch([np.full((2, 2, 3), 255, np.uint8)] * 300).max() == 255  # no overflow
    with pytest.raises(ValueError, match="no patch"):
        mean_patch([])


def trend() -> Any:
    red, blue = np.array([50.0, 60, 40]), np.array([30.0, 10, -60])
    colours = {
        "oslo": np.stack([red - 5, blue, red + 5, blue]),
        "rome": np.stack([red, blue, red, blue + np.array([0, 0, 8])]),
        "paris": np.stack([blue, blue, blue, blue]),
    }
    return trend_table(np.array([1, 0, 1, 0], np.int32), colours)


def test_a_row_for_each_cluster_and_label_over_its_members() -> None:
    table = trend()
    assert table.schema == TREND_SCHEMA
    pairs = list(zip(table["cluster"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert pairs == [(c, label) for c in (0, 1) for label in ("oslo", "rome", "paris")]
    rows = dict(zip(pairs, table.to_pylist(), strict=True))
    assert rows[0, "rome"]["b"] == pytest.approx(-56)
    assert rows[1, "oslo"]["a"] == pytest.approx(60)
    assert rows[1, "oslo"]["srgb"] == rows[1, "rome"]["srgb"] != rows[1, "paris"]["srgb"]
    # Of (0, 0, 8)/2 over three labels: 4 · 2/3 from the middle, the others 4 · 1/3.
    assert rows[0, "rome"]["delta_e"] == pytest.approx(8 / 3, rel=1e-5)
    assert rows[0, "oslo"]["delta_e"] == pytest.approx(4 / 3, rel=1e-5)


def test_the_two_labels_furthest_apart() -> None:
    moves = movements(trend())
    assert moves[0] == Movement(("oslo", "rome"), 4)
    assert moves[1].labels == ("oslo", "paris")
    assert moves[1].delta_e == pytest.approx(np.linalg.norm([20, 50, 100]))


def test_one_label_does_not_move() -> None:
    table = trend_table(np.zeros(2, np.int32), {"oslo": np.ones((2, 3))})
    assert table["delta_e"].to_pylist() == [0]
    assert movements(table) == {}


def test_golden() -> None:
    """Other colours under the same ALGO would mix with those stored: raise it with them."""
    values = (np.arange(3 * 4 * 3).reshape(3, 4, 3) * 37 % 256).astype(np.uint8)
    assert ALGO == "trend-1"
    np.testing.assert_allclose(patch_colour(values), [52.45126, 5.619237, 4.934397], atol=1e-4)
