"""Typicality and patches against masks whose answers are known."""

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
from diffmining_core.store.maps import RaggedMaps


def mask_png(width: int, height: int, box: tuple[int, int, int, int]) -> bytes:
    """White in the box (left, top, right, bottom), black elsewhere."""
    picture = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    picture[top:bottom, left:right] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def masks(tmp_path: Path) -> MaskFolder:
    """One mask of 100 × 64 px whose left quarter is true, one that is empty."""
    put(str(tmp_path), "crack/a.png", mask_png(100, 64, (0, 0, 25, 64)))
    put(str(tmp_path), "crack/empty.png", mask_png(64, 64, (0, 0, 0, 0)))
    return MaskFolder(str(tmp_path))


def test_a_mask_takes_the_size_of_its_image_in_the_model(masks: MaskFolder) -> None:
    mask = masks.mask("/photos/crack/a.jpg", "crack", 32)
    assert mask is not None
    assert mask.shape == (32, 48)  # 50 px wide, cut to a multiple of 8
    assert mask[:, :12].all()
    assert not mask[:, 13:].any()


def test_an_image_of_another_label_or_name_has_no_mask(masks: MaskFolder) -> None:
    assert masks.mask("/photos/crack/a.jpg", "fray", 32) is None
    assert masks.mask("/photos/crack/b.jpg", "crack", 32) is None


def test_typicality_on_the_mask_alone_has_average_precision_one(masks: MaskFolder) -> None:
    inside = np.zeros((4, 6), np.float32)
    inside[:, 0] = 1  # the first 8 of 48 px; the mask has 12
    maps = RaggedMaps.pack(
        means := [inside, np.ones((4, 4), np.float32), inside],
        means,
        [1.0, 1.0, 1.0],
        ["a" * 32, "b" * 32, "c" * 32],
        ["crack", "fray", "crack"],
        4,
    )
    uris = {
        ("a" * 32, "crack"): "/photos/crack/a.jpg",
        ("b" * 32, "fray"): "/photos/fray/b.jpg",
        ("c" * 32, "crack"): "/photos/crack/without.jpg",
    }
    scores = score_pixels(maps, uris, masks, 32)
    assert scores.keys() == {"crack"}
    assert scores["crack"].average_precision > 0.99
    assert scores["crack"].base_rate == pytest.approx(12 / 48)


def test_a_patch_hits_where_half_of_it_or_of_the_mask_is_under_it(masks: MaskFolder) -> None:
    def patch(
        kind: str, x: int, uri: str = "/photos/crack/a.jpg", size: int = 16
    ) -> dict[str, object]:
        return {"kind": kind, "uri": uri, "label": "crack", "y": 0, "x": x, "size": size}

    rows = [
        patch("highest", 0),  # 12 of 16 columns
        patch("highest", 4),  # 8 of 16: half
        patch("highest", 5),  # less
        patch("lowest", 30),
        patch("lowest", 0, uri="/photos/crack/empty.jpg"),  # nothing to hit
        patch("random", 0, uri="/photos/crack/unknown.jpg"),  # no truth, not counted
    ]
    assert hits(pa.Table.from_pylist(rows), masks, 32) == {"highest": 2 / 3, "lowest": 0.0}


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should hold masks"):
        MaskFolder(str(tmp_path)).mask("/photos/crack/a.jpg", "crack", 32)
