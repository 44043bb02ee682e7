from __future__ import annotations

import numpy as np

from diffmining_core.report.overlays import colour_bar, diverging_colours, label_scale, overlay


def test_zero_is_clear_and_the_ends_are_opaque_warm_and_cool() -> None:
    low, zero, high = diverging_colours(np.array([-1.0, 0.0, 1.0])).astype(int)
    assert zero[3] == 0
    assert low[3] == high[3] == 255
    assert high[0] > high[2]
    assert low[2] > low[0]


def test_opacity_grows_with_magnitude_and_clips() -> None:
    alpha = diverging_colours(np.linspace(-2, 2, 81))[:, 3].astype(int)
    assert (np.diff(alpha[:41]) <= 0).all()
    assert np.abs(alpha - alpha[::-1]).max() <= 1  # rounding of the linspace
    assert alpha[0] == alpha[20] == 255


def test_overlay_is_four_pixels_a_cell_and_signed_where_the_map_is() -> None:
    one = np.zeros((6, 4), np.float32)
    one[1, 1], one[4, 2] = 2e-3, -2e-3
    picture = np.asarray(overlay(one, 1e-3)).astype(int)
    assert picture.shape == (24, 16, 4)
    assert picture[6, 6, 0] > picture[6, 6, 2]
    assert picture[18, 10, 2] > picture[18, 10, 0]
    assert picture[0, 0, 3] == 0


def test_scale_is_the_99th_percentile_of_the_magnitude_over_all_maps() -> None:
    maps = [np.full((10, 10), -2.0, np.float32), np.full((10, 10), 1.0, np.float32)]
    assert label_scale(maps) == 2.0
    assert label_scale([]) == 1.0
    assert label_scale([np.zeros((4, 4), np.float32)]) == 1.0


def test_colour_bar_runs_from_cool_to_warm() -> None:
    bar = np.asarray(colour_bar()).astype(int)
    assert bar.shape == (8, 256, 3)
    assert bar[0, 0, 2] > bar[0, 0, 0]
    assert bar[0, -1, 0] > bar[0, -1, 2]
