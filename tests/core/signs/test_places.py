from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from diffmining_core.signs.moments import LabelMoments, Spread
from diffmining_core.signs.pictures import picture
from diffmining_core.signs.places import (
    LabelPlaces,
    Placed,
    padding_mask,
    place_signs,
)
from diffmining_core.signs.sign import Raised

SIZE = 16
Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], None]


class Drawn:
    """Images of coarse noise, of two shapes, some changed; patches of them."""

    def __init__(self) -> None:
        self.pixels: dict[str, Pixels] = {}

    def label(
        self,
        name: str,
        at: Callable[[int, int, np.random.Generator], tuple[int, int]] | None = None,
        change: Change | None = None,
        n: int = 30,
    ) -> LabelPlaces:
        """One top patch of each image where `at` says, else anywhere, and two random ones."""
        rng = np.random.default_rng(sum(map(ord, name)))
        highest, random = [], []
        for number in range(n):
            height, width = (64, 96) if number % 2 else (80, 64)
            coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)
            if change:
                change(pixels)
            image_id = f"{name} {number}"
            self.pixels[image_id] = pixels

            def anywhere(height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
                # Never quite at the edge, so that the tests do not hang on chance.
                y, x = rng.integers(1, (height - SIZE, width - SIZE))
                return int(y), int(x)

            y, x = (at or anywhere)(height, width, rng)
            highest.append(Placed(image_id, image_id, y, x, SIZE, height, width))
            for _ in range(2):
                y, x = anywhere(height, width, rng)
                random.append(Placed(image_id, image_id, y, x, SIZE, height, width))
        return LabelPlaces(highest, random)

    def load(self, patch: Placed) -> Pixels:
        return self.pixels[patch.uri]


def corner(height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    jitter = rng.integers(0, 4, 2)
    return height - SIZE - int(jitter[0]), width - SIZE - int(jitter[1])


def edge(height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    along = int(rng.integers(0, height - SIZE))
    return along, 0 if rng.random() < 0.5 else width - SIZE


def stamp(pixels: Pixels) -> None:
    mark = np.random.default_rng(5).integers(0, 2, (7, 7), dtype=np.uint8) * 255
    pixels[-15:-1, -15:-1] = mark.repeat(2, axis=0).repeat(2, axis=1)[..., None]


def pad(pixels: Pixels) -> None:
    noise = np.random.default_rng(0).integers(0, 6, pixels.shape, dtype=np.uint8)
    pixels[:, :12] = noise[:, :12]
    pixels[:, -12:] = noise[:, -12:]


def moments(edge_over_mean: float) -> LabelMoments:
    return LabelMoments(edge=Spread(10, 10 * edge_over_mean), above=Spread(100, 100.0))


def signs(drawn: Drawn, labels: dict[str, LabelPlaces], edge: float = 1.0) -> list[Raised]:
    return list(place_signs(labels, dict.fromkeys(labels, moments(edge)), drawn.load))


def test_patches_anywhere_raise_nothing_though_images_are_stamped_or_padded() -> None:
    drawn = Drawn()
    labels = {
        "plain": drawn.label("plain"),
        "stamped": drawn.label("stamped", change=stamp),
        "padded": drawn.label(
            "padded", lambda h, w, rng: (int(rng.integers(h - SIZE)), w // 2 - 8), pad
        ),
    }
    assert signs(drawn, labels, edge=3.0) == []


def test_a_mark_at_one_place_of_images_of_any_shape_is_a_watermark() -> None:
    drawn = Drawn()
    labels = {"plain": drawn.label("plain"), "stamped": drawn.label("stamped", corner, stamp)}
    (raised,) = signs(drawn, labels)
    assert (raised.sign.name, raised.sign.label) == ("watermark", "stamped")
    assert "30 of 30 images" in raised.sign.evidence
    images, places = raised.rows
    assert len(images) == len(places) == 6
    assert all(place.shape == (SIZE, SIZE, 3) for place in places)
    assert picture(raised.rows).mode == "RGBA"


def test_one_place_that_looks_different_each_time_is_none() -> None:
    drawn = Drawn()
    labels = {"plain": drawn.label("plain"), "corner": drawn.label("corner", corner)}
    assert signs(drawn, labels) == []


def test_what_images_of_all_labels_have_there_is_none() -> None:
    drawn = Drawn()
    labels = {
        "plain": drawn.label("plain", change=stamp),
        "stamped": drawn.label("stamped", corner, stamp),
    }
    assert signs(drawn, labels) == []


def test_bars_at_the_sides_are_padding() -> None:
    drawn = Drawn()
    labels = {"plain": drawn.label("plain"), "padded": drawn.label("padded", edge, pad)}
    (raised,) = signs(drawn, labels, edge=2.0)
    assert (raised.sign.name, raised.sign.label) == ("padding", "padded")
    assert "100 % of the top patches" in raised.sign.evidence


def test_edges_without_padding_are_borders_if_the_maps_are_high_there() -> None:
    drawn = Drawn()
    labels = {"plain": drawn.label("plain"), "edges": drawn.label("edges", edge)}
    (raised,) = signs(drawn, labels, edge=2.0)
    assert (raised.sign.name, raised.sign.label) == ("borders", "edges")
    assert "100 % of the top patches touch an edge" in raised.sign.evidence
    assert signs(drawn, labels, edge=1.0) == []


def test_where_every_patch_touches_an_edge_by_chance_nothing_is_said() -> None:
    drawn = Drawn()
    edges = drawn.label("edges", edge)
    labels = {"edges": replace(edges, random=edges.highest)}
    assert signs(drawn, labels, edge=2.0) == []


@pytest.mark.parametrize("turns", range(4))
def test_padding_is_a_band_of_one_colour_along_a_whole_side(turns: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    turned = np.rot90(pixels, turns)
    turned[:7] = (10, 200, 30)
    turned[20:30, 5:9] = 0
    expected = np.zeros((40, 40), bool)
    np.rot90(expected, turns)[:7] = True
    np.testing.assert_array_equal(padding_mask(pixels), expected)


def test_two_rows_are_no_padding_and_an_image_of_one_colour_is_all() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    pixels[:2] = 0
    assert not padding_mask(pixels).any()
    assert padding_mask(np.full((40, 40, 3), 200, np.uint8)).all()


def test_frames_are_drawn_on_copies() -> None:
    drawn = Drawn()
    labels = {"plain": drawn.label("plain"), "padded": drawn.label("padded", edge, pad)}
    before = {uri: pixels.copy() for uri, pixels in drawn.pixels.items()}
    (raised,) = signs(drawn, labels)
    assert all((drawn.pixels[uri] == pixels).all() for uri, pixels in before.items())
    assert any((tile == 255).all(axis=2).sum() > 20 for tile in raised.rows[0])


def test_few_patches_are_not_judged() -> None:
    drawn = Drawn()
    labels = {"padded": drawn.label("padded", edge, pad, n=6)}
    assert signs(drawn, labels, edge=3.0) == []
