from __future__ import annotations

import numpy as np
import pytest

from diffmining_core.report import figures, layouts
from diffmining_core.report.figures import Tile


def tile(value: int, side: int = 24) -> Tile:
    return np.full((side, side, 3), value, np.uint8)


def test_clusters_figure_is_six_by_six_with_the_papers_gaps() -> None:
    picture = layouts.clusters_figure([[tile(9)] * 20] * 32).image()
    assert picture.size == (6 * 96 + 5 * 2, 6 * 96 + 5 * 4)
    pixels = np.asarray(picture)
    assert (pixels[:, 96:98] == 255).all()
    assert (pixels[96:100] == 255).all()
    assert (pixels[:96, :96] == 9).all()


def test_clusters_figure_takes_what_there_is() -> None:
    assert layouts.clusters_figure([[tile(9)] * 2]).image().size == (2 * 96 + 2, 96)


def test_sprite_finds_every_tile_and_repeats_its_border() -> None:
    sprite = figures.sprite([tile(value) for value in range(45)])
    pixels = np.asarray(sprite.image)
    for index in range(45):
        x, y = sprite.corner(index)
        around = pixels[y - 2 : y + sprite.tile + 2, x - 2 : x + sprite.tile + 2]
        assert around.shape == (28, 28, 3)
        assert (around == index).all()


def test_sprite_takes_tiles_of_several_sizes_and_none() -> None:
    assert figures.sprite([tile(1, 16), tile(2, 24)]).tile == 24
    assert figures.sprite([tile(1, 500)]).tile == 128
    assert figures.sprite([]).image.size == (1, 1)


def test_cover_size_needs_no_pixels() -> None:
    rows = [[tile(1)] * 5, [tile(2)] * 3]
    assert figures.cover(rows).size == figures.cover_size(rows) == (5 * 84 - 4, 2 * 84 - 4)


def test_strips_figure_names_rows_and_columns() -> None:
    rows = {"Highest": [tile(10)] * 6, "Random": [tile(20)] * 6, "Lowest": []}
    alone = layouts.strips_figure({"After": rows}).image()
    beside = layouts.strips_figure({"Before": rows, "After": rows}).image()
    assert alone.height == 3 * 96 + 2 * 4
    assert beside.height > alone.height
    assert beside.width > 2 * 6 * 96
    assert np.asarray(alone)[:96, :100].min() < 100  # a name is written


def test_a_long_name_of_a_row_makes_room_for_itself() -> None:
    short = layouts.strips_figure({"": {"Highest": [tile(10)]}}).image()
    long = layouts.strips_figure({"": {"Highest of all patches": [tile(10)]}}).image()
    assert long.width > short.width + 60
    assert (np.asarray(long)[:, -96:] == 10).all()
    assert (np.asarray(long)[:, -106:-96] == 255).all()


@pytest.mark.parametrize("count", [1, 5, 10, 24])
def test_overview_figure_has_a_block_for_every_label(count: int) -> None:
    rows = [[tile(7)] * 5] * 3
    picture = layouts.overview_figure("Title", [(f"label {n}", rows) for n in range(count)]).image()
    assert (np.asarray(picture) == 7).all(axis=2).sum() == count * 15 * 96 * 96


def test_overview_figure_takes_any_text() -> None:
    labels = [("東京 " * 50, [[tile(7)]]), ("line\nbreak", []), ("\u202e<b>", [[tile(7)]])]
    assert layouts.overview_figure("T" * 500, labels).image().width < 4000
