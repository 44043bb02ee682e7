"""Cells and descriptors against scikit-image's own HOG, and by what they should tell apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from skimage.color import rgb2lab
from skimage.feature import hog
from torch.nn import functional

from diffmining_core.baselines.windows import (
    ALGO,
    CELLS,
    DIMENSIONS,
    ORIENTATIONS,
    all_descriptors,
    cell_side,
    cell_values,
    descriptors_at,
    image_cells,
    window_corner,
    window_grid,
)

Pixels = npt.NDArray[np.uint8]


def drawn(height: int, width: int, seed: int = 0) -> Pixels:
    """Soft blots of many colours."""
    blots = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    image = Image.fromarray(blots.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [64, 24, 16])
def test_edges_are_scikit_images_hog(size: int) -> None:
    pixels = drawn(96, 136)
    side = size // CELLS
    expected = hog(
        pixels,
        orientations=ORIENTATIONS,
        pixels_per_cell=(side, side),
        cells_per_block=(CELLS, CELLS),
        channel_axis=-1,
        feature_vector=False,
    )
    cells = image_cells(pixels, size)
    assert window_grid(cells) == expected.shape[:2]
    edges = all_descriptors(cells)[:, : CELLS * CELLS * ORIENTATIONS]
    edges /= np.linalg.norm(edges, axis=1, keepdims=True)
    # Half precision has 11 bits; a descriptor's numbers are at most 0.25.
    np.testing.assert_allclose(edges, expected.reshape(len(edges), -1), atol=2**-12)


@pytest.mark.parametrize("size", [64, 24, 16])
def test_histograms_give_scikit_images_hog_of_bytes(size: int) -> None:
    """Before they are rounded to half precision; with many ties between the channels."""
    levels = np.random.default_rng(5).integers(0, 8, (96, 136, 3)) * 31 + 3
    levels[60:80, :70] = 3  # and a blank area
    pixels = levels.astype(np.uint8)
    side = size // CELLS
    options = {
        "orientations": ORIENTATIONS,
        "pixels_per_cell": (side, side),
        "cells_per_block": (CELLS, CELLS),
        "channel_axis": -1,
        "feature_vector": False,
    }
    windows = sliding_window_view(
        cell_values(pixels, size)[..., :ORIENTATIONS], (CELLS, CELLS), (0, 1)
    )
    blocks = np.moveaxis(windows, 2, 4)

    def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        lengths = np.sqrt((vectors**2).sum((2, 3, 4), keepdims=True) + 1e-10)
        return np.asarray(vectors / lengths)

    edges = unit(np.minimum(unit(blocks), 0.2))
    # scikit-image adds a cell up in single precision.
    np.testing.assert_allclose(edges, hog(pixels, **options), rtol=0, atol=1e-7)
    assert np.abs(edges - hog(pixels / 255, **options)).max() > 1e-2  # other channels win ties


@pytest.mark.parametrize("size", [64, 48, 24, 16])
def test_colours_are_a_bilinear_resize_of_lab(size: int) -> None:
    """The cell's four centre pixels, or the one of a cell of 3 px, as torch resizes."""
    pixels = np.random.default_rng(1).integers(0, 256, (size, size + size // CELLS, 3))
    values = cell_values(pixels.astype(np.uint8), size)[..., ORIENTATIONS:]
    lab = rgb2lab(pixels.astype(np.uint8))[..., 1:]
    for column in (0, 1):
        left = column * size // CELLS
        window = torch.from_numpy(lab[:, left : left + size]).permute(2, 0, 1)[None]
        small = functional.interpolate(window, (CELLS, CELLS), mode="bilinear", align_corners=False)
        expected = (small[0].permute(1, 2, 0).numpy() + 128) / 255
        np.testing.assert_allclose(values[:, column : column + CELLS], expected, atol=1e-12)


def test_colours_of_a_descriptor_are_its_cells() -> None:
    pixels = drawn(64, 64)
    (descriptor,) = all_descriptors(image_cells(pixels, 64))
    colours = descriptor[CELLS * CELLS * ORIENTATIONS :]
    expected = cell_values(pixels, 64)[..., ORIENTATIONS:].ravel()
    np.testing.assert_allclose(
        colours / np.linalg.norm(colours), expected / np.linalg.norm(expected), atol=1e-4
    )


def test_a_descriptor_has_unit_length_whatever_the_window() -> None:
    blank = np.full((64, 72, 3), 255, np.uint8)
    for pixels in (drawn(64, 72), blank, 0 * blank):
        descriptors = all_descriptors(image_cells(pixels, 64))
        assert descriptors.shape == (2, DIMENSIONS)
        np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-3)


def test_a_window_is_described_alike_wherever_it_lies() -> None:
    pixels = drawn(80, 96)
    moved = np.pad(pixels, ((16, 0), (24, 0), (0, 0)))[:80, :96]
    one = descriptors_at(image_cells(pixels, 48), [(1, 1)])
    other = descriptors_at(image_cells(moved, 48), [(1 + 16 // 6, 5)])
    same = descriptors_at(image_cells(np.pad(pixels, ((12, 0), (24, 0), (0, 0))), 48), [(3, 5)])
    assert float(one[0] @ same[0]) == pytest.approx(1, abs=1e-3)
    assert float(one[0] @ other[0]) < float(one[0] @ same[0])


def test_some_windows_are_described_as_among_all() -> None:
    cells = image_cells(drawn(64, 80), 24)
    _, across = window_grid(cells)
    places = [(0, 0), (3, 7), (2, across - 1)]
    rows = [row * across + column for row, column in places]
    np.testing.assert_array_equal(descriptors_at(cells, places), all_descriptors(cells)[rows])
    assert descriptors_at(cells, []).shape == (0, DIMENSIONS)


@pytest.mark.parametrize(
    ("size", "side", "grid"), [(12, 2, (36, 36)), (50, 7, (3, 3)), (64, 8, (1, 1))]
)
def test_windows_that_are_no_whole_cells_are_enlarged(
    size: int, side: int, grid: tuple[int, int]
) -> None:
    assert cell_side(size) == side
    cells = image_cells(drawn(64, 64), size)
    assert window_grid(cells) == (grid if size != 12 else (35, 35))
    last = (window_grid(cells)[0] - 1, window_grid(cells)[1] - 1)
    y, x = window_corner(last, size, (64, 64))
    assert 64 - 2 * size / CELLS <= y + size <= 64
    assert y == x
    assert window_corner((0, 0), size, (64, 64)) == (0, 0)


def test_an_image_smaller_than_a_window_has_none() -> None:
    cells = image_cells(drawn(40, 80), 64)
    assert min(window_grid(cells)) < 1
    assert all_descriptors(cells).shape == (0, DIMENSIONS)


def test_the_version_stands_for_these_cells() -> None:
    """What goes wrong here needs another ALGO, and then other numbers."""
    cells = image_cells(drawn(48, 64, seed=3), 12).astype(np.float32)
    assert ALGO == "windows-2"
    expected = [0, 0, 0, 0, 0, 0.7378, 0.2261]
    np.testing.assert_allclose(cells[5, 7, [0, 3, 9, 15, 20, 31, 32]], expected, atol=1e-3)
    assert cells[..., :ORIENTATIONS].sum() == pytest.approx(43984.5, rel=1e-3)
    assert cells[..., ORIENTATIONS:].sum() == pytest.approx(1361.95, rel=1e-3)
