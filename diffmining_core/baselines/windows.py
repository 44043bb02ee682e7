"""Windows as Doersch et al. (2012) describe them: oriented edges (HOG) and colours (Lab).

A window is 8 × 8 cells, and one starts at every cell. A cell is stored once, in half precision: a
histogram of 31 orientations and Lab's a and b at its centre. Descriptors of windows are assembled
on demand; storing them would take 64 times the space.

Sizes and steps are those of the re-implementation by Siglidis et al. (2024, doersch/hog.py): at
windows of 64 px, cells are 8 px. HOG equals scikit-image's `hog` on byte values (31 orientations,
8 × 8 cells a block, L2-Hys), which does not return the cells' histograms. Colours equal a bilinear
resize of the window to 8 × 8 px without antialiasing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

ALGO = "windows-2"

CELLS = 8
"""Along a window's side."""
ORIENTATIONS = 31
CHANNELS = ORIENTATIONS + 2
DIMENSIONS = CELLS * CELLS * CHANNELS
"""Of a descriptor: 1984 of edges and 128 of colours."""

MIN_CELL = 2
"""Pixels along a cell at least: a smaller one has no orientation of its own."""

_EPSILON, _CLIP = 1e-5, 0.2  # of L2-Hys, as scikit-image has them

Cells = npt.NDArray[np.float16]
"""[rows, columns, CHANNELS] of one image."""
Floats = npt.NDArray[np.float32]
Place = tuple[int, int]
"""Row and column of a window's first cell."""


def cell_side(size: int) -> int:
    """Pixels along a cell of windows of `size` pixels, once the image is enlarged to whole ones."""
    return max(MIN_CELL, math.ceil(size / CELLS))


def image_cells(pixels: npt.NDArray[np.uint8], size: int) -> Cells:
    """The cells of an image uint8 [h, w, 3] for windows of `size` pixels, in half precision.

    If a window does not divide into 8 cells of whole pixels, the image is enlarged until it does.
    Pixels at the right and bottom that do not fill a cell are ignored.
    """
    return cell_values(pixels, size).astype(np.half)


def cell_values(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float64]:
    """As `image_cells`, in double precision.

    Gradients are those of byte values, 0 to 255, whose differences are exact: equal channels tie,
    and the normalisation's epsilon stays negligible. Colours are (v + 128) / 255.
    """
    from skimage.color import rgb2lab  # takes half a second, which not all baselines need

    side = cell_side(size)
    image = Image.fromarray(pixels)
    if side * CELLS != size:
        wide, high = (round(length * side * CELLS / size) for length in image.size)
        image = image.resize((wide, high), Image.Resampling.LANCZOS)
    values = np.asarray(image, np.uint8)
    colours = (_centres(rgb2lab(values)[..., 1:], side) + 128) / 255
    return np.concatenate([_orientations(values.astype(np.float64), side), colours], axis=-1)


def window_grid(cells: Cells) -> Place:
    """How many windows there are down and across; 0 and less for none."""
    return cells.shape[0] - CELLS + 1, cells.shape[1] - CELLS + 1


def window_corner(place: Place, size: int, image_hw: Place) -> Place:
    """(y, x) of the window at a place, in pixels of the image of `image_hw`, within it."""
    y, x = (round(at * size / CELLS) for at in place)
    return min(y, image_hw[0] - size), min(x, image_hw[1] - size)


def all_descriptors(cells: Cells) -> Floats:
    """The descriptors [windows, DIMENSIONS] of all windows of an image, row by row."""
    if min(window_grid(cells)) < 1:
        return np.empty((0, DIMENSIONS), np.float32)
    windows = sliding_window_view(cells, (CELLS, CELLS), (0, 1))  # [rows, columns, channels, 8, 8]
    return _described(np.moveaxis(windows, 2, 4).reshape(-1, CELLS, CELLS, CHANNELS))


def descriptors_at(cells: Cells, places: Sequence[Place]) -> Floats:
    """The descriptors [len(places), DIMENSIONS] of some windows."""
    windows = [cells[row : row + CELLS, column : column + CELLS] for row, column in places]
    return _described(np.array(windows, np.half).reshape(-1, CELLS, CELLS, CHANNELS))


def _described(windows: Cells) -> Floats:
    """Descriptors of unit length of windows [n, 8, 8, CHANNELS], with half precision's steps."""
    values = windows.astype(np.float32)
    edges = _unit(values[..., :ORIENTATIONS].reshape(-1, CELLS * CELLS * ORIENTATIONS))
    edges = _unit(np.minimum(edges, _CLIP))
    colours = values[..., ORIENTATIONS:].reshape(-1, CELLS * CELLS * 2)
    joined = np.concatenate([edges, colours], axis=1)
    joined /= np.linalg.norm(joined, axis=1, keepdims=True)
    return joined.astype(np.half).astype(np.float32)


def _unit(vectors: Floats) -> Floats:
    lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True) + np.float32(_EPSILON**2))
    unit: Floats = vectors / lengths
    return unit


def _orientations(values: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    """The histograms [rows, columns, ORIENTATIONS]: mean gradient magnitude by its orientation.

    The gradient of the channel where it is greatest; central differences, 0 at the border.
    """
    down, across = np.zeros_like(values), np.zeros_like(values)
    down[1:-1] = values[2:] - values[:-2]
    across[:, 1:-1] = values[:, 2:] - values[:, :-2]
    strongest = np.hypot(down, across).argmax(axis=2)[..., None]
    down, across = (np.take_along_axis(g, strongest, 2)[..., 0] for g in (down, across))
    degrees = np.rad2deg(np.arctan2(down, across)) % 180
    orientation = np.minimum(degrees * ORIENTATIONS / 180, ORIENTATIONS - 1).astype(np.intp)
    rows, columns = (length // side for length in values.shape[:2])
    cell = np.add.outer(np.arange(rows).repeat(side) * columns, np.arange(columns).repeat(side))
    seen = slice(rows * side), slice(columns * side)
    counted = np.bincount(
        (cell * ORIENTATIONS + orientation[seen]).ravel(),
        np.hypot(down, across)[seen].ravel(),
        rows * columns * ORIENTATIONS,
    )
    return counted.reshape(rows, columns, ORIENTATIONS) / side**2


def _centres(values: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    """The values [h, w, channels] at the centre of each cell: [rows, columns, channels].

    The mean of the four centre pixels of a cell of an even side, the centre pixel of an odd one.
    """
    rows, columns = (length // side for length in values.shape[:2])
    cells = values[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
    centre = slice((side - 1) // 2, side // 2 + 1)
    return np.asarray(cells[:, centre, :, centre].mean(axis=(1, 3)))
