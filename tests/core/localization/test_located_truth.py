"""Boxes, planted elements and masks as pixels of the model-size image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from written_images import put

from diffmining_core.errors import InputError
from diffmining_core.evaluation.masks import MaskFolder, hits, score_pixels
from diffmining_core.images.pixels import model_scale, model_size, resized_hw
from diffmining_core.images.shard_image import Box, ShardImage
from diffmining_core.localization.truth import (
    BoxMasks,
    BoxTruth,
    MaskTruth,
    PlantedTruth,
    box_mask,
)
from diffmining_core.store.maps import RaggedMaps


def image(uri: str = "/x/crack/a.jpg", label: str = "crack", *boxes: Box) -> ShardImage:
    return ShardImage("a" * 32, uri, label, width=100, height=64, boxes=boxes)


def test_boxes_halve_with_the_image() -> None:
    """As the 1024-px X-rays do at 512."""
    mask = box_mask([(225.0, 548.0, 86.0, 80.0)], 1024, 1024, 512)
    assert mask.shape == (512, 512)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (rows[0], rows[-1] + 1) == (274, 314)
    assert (columns[0], columns[-1] + 1) == (112, 155)  # centres from 112.5 up to 155.5
    assert mask.sum() == 40 * 43


@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 1001), (64, 64), (50, 90)])
def test_a_box_lies_on_what_it_was_drawn_around(width: int, height: int) -> None:
    """A white box in the photo and the mask of the box, after the same resize and crop."""
    left, top, right, bottom = width // 5, height // 3, width // 2, height - height // 4
    photo = np.zeros((height, width), np.uint8)
    photo[top:bottom, left:right] = 255
    shown = np.asarray(model_size(Image.fromarray(photo), 64, Image.Resampling.BILINEAR)) > 127
    mask = box_mask([(left, top, right - left, bottom - top)], width, height, 64)
    assert mask.shape == shown.shape == resized_hw(width, height, 64)
    assert np.count_nonzero(mask != shown) <= 2 * (
        shown.any(axis=0).sum() + shown.any(axis=1).sum()
    )
    assert np.logical_and(mask, shown).sum() > 0.9 * shown.sum()


def test_scales_of_both_axes_are_those_of_the_resize() -> None:
    assert model_scale(1024, 1024, 512) == (0.5, 0.5)
    assert model_scale(3000, 4000, 64) == (85 / 4000, 64 / 3000)


def test_boxes_join_and_end_at_the_border() -> None:
    mask = box_mask([(-5.0, -5.0, 10.0, 10.0), (60.0, 60.0, 99.0, 99.0)], 64, 64, 64)
    assert mask.sum() == 25 + 16
    assert mask[4, 4]
    assert not mask[5, 5]
    assert mask[63, 63]


def test_a_box_between_two_centres_covers_no_pixel() -> None:
    assert not box_mask([(10.6, 10.6, 0.8, 0.8)], 64, 64, 64).any()
    assert not box_mask([(200.0, 0.0, 10.0, 10.0)], 64, 64, 64).any()


def test_images_with_boxes_are_located() -> None:
    boxed, plain = image("/a.jpg", "crack", (1.0, 2.0, 3.0, 4.0)), image("/b.jpg")
    assert BoxTruth().located([plain, boxed]) == [boxed]
    assert BoxTruth().mask(boxed, 64).sum() == 12


def test_a_box_that_is_no_number_is_named() -> None:
    with pytest.raises(InputError, match=r"/a\.jpg.*four finite numbers"):
        BoxTruth().mask(image("/a.jpg", "crack", (1.0, float("nan"), 3.0, 4.0)), 64)


def test_planted_elements_of_the_own_label_are_boxes() -> None:
    rows = [
        {"file": "crack/a.jpg", "element": "pole", "typical_of": "crack", "y0": 10, "x0": 20}
        | {"y1": 20, "x1": 50},
        {"file": "crack/a.jpg", "element": "roof", "typical_of": "fray", "y0": 0, "x0": 0}
        | {"y1": 64, "x1": 100},
        {"file": "crack/b.jpg", "element": "sky", "typical_of": None, "y0": 0, "x0": 0}
        | {"y1": 64, "x1": 100},
    ]
    truth = PlantedTruth(pa.Table.from_pylist(rows))
    (located,) = truth.located([image(), image("/x/crack/b.jpg")])
    assert located.boxes == ((20.0, 10.0, 30.0, 10.0),)
    half = truth.mask(located, 32)  # smaller than it was drawn
    assert half.shape == (32, 48)
    assert half[5:10, 10:25].all()
    assert half.sum() == 5 * 15


def test_a_mask_belongs_to_its_image_and_label(tmp_path: Path) -> None:
    put(str(tmp_path), "crack/a.png", _white(100, 64))
    put(str(tmp_path), "crack/tall.png", _white(64, 128))
    truth = MaskTruth(MaskFolder(str(tmp_path)))
    others = [image(label="fray"), image("/x/crack/b.jpg")]
    assert truth.located([*others, image()]) == [image()]
    assert truth.mask(image(), 64).all()
    with pytest.raises(InputError, match=r"should be 96 × 64 px .* but is 64 × 128 px"):
        truth.mask(image("/x/crack/tall.jpg"), 64)
    with pytest.raises(InputError, match="but is gone"):
        truth.mask(image("/x/crack/b.jpg"), 64)


def _white(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 255, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def test_boxes_are_masks_to_those_who_measure_against_masks() -> None:
    left_half, nothing = (0.0, 0.0, 50.0, 64.0), (10.1, 10.1, 0.2, 0.2)
    boxed = image("/x/a.jpg", "crack", left_half)
    masks = BoxMasks.of(
        [boxed, image("/x/b.jpg", "crack", nothing), image("/x/c.jpg", "crack"), image("/x/a.jpg")]
    )
    mask = masks.mask("/x/a.jpg", "crack", 64)
    assert mask is not None
    np.testing.assert_array_equal(mask, BoxTruth().mask(boxed, 64))
    assert masks.mask("/x/b.jpg", "crack", 64) is None, "it covers no pixel"
    assert masks.mask("/x/c.jpg", "crack", 64) is None
    assert masks.mask("/x/a.jpg", "hole", 64) is None


def test_maps_and_patches_are_measured_against_boxes() -> None:
    hot = np.zeros((8, 12), np.float32)
    hot[:, :6] = 1  # as the box
    maps = RaggedMaps.pack([hot], [hot], [0.1], ["a" * 32], ["crack"], 2, 1)
    masks = BoxMasks.of([image("/x/a.jpg", "crack", (0.0, 0.0, 48.0, 64.0))])
    scores = score_pixels(maps, {("a" * 32, "crack"): "/x/a.jpg"}, masks, 64)["crack"]
    assert scores.base_rate == pytest.approx(0.5)
    assert scores.average_precision > 0.95
    rows = [
        {"kind": kind, "uri": "/x/a.jpg", "label": "crack", "y": 0, "x": x, "size": 16}
        for kind, x in (("highest", 8), ("lowest", 72))
    ]
    assert hits(pa.Table.from_pylist(rows), masks, 64) == {"highest": 1, "lowest": 0}
