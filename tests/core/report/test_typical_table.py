"""The table of typical patches for the Prefect UI: what it shows, and that it stays small."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from diffmining_core.report.typical import (
    PATCHES_PER_LABEL,
    PICTURED_LABELS,
    TABLE_BYTES,
    TypicalLabel,
    pictured_labels,
    typical_table,
)


def noisy(label: str, side: int = 64) -> TypicalLabel:
    """What no compression makes small."""
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(PATCHES_PER_LABEL)]
    return TypicalLabel(label, 1234, tiles, [0.5 / (place + 1) for place in range(len(tiles))])


def pictures(table: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"!\[\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", table)
    ]


@pytest.mark.parametrize("labels", [1, 5, PICTURED_LABELS])
def test_the_table_stays_small_by_smaller_pictures(labels: int) -> None:
    table = typical_table([noisy(f"label {place}") for place in range(labels)], "highest")
    assert len(table.encode()) <= TABLE_BYTES < 200_000
    shown = pictures(table)
    assert len(shown) == labels
    assert {picture.format for picture in shown} == {"PNG"}
    assert shown[0].width > 200
    assert (shown[0].width > 480) == (labels == 1)


def test_patches_are_framed_and_their_typicality_is_below_them() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    (shown,) = pictures(typical_table([TypicalLabel("barn", 3, [white], [0.25])], "highest"))
    pixels = np.asarray(shown.convert("L"))
    assert shown.size == (80, 100)
    assert (pixels[[0, 79], :] < 200).all() and (pixels[:80, [0, 79]] < 200).all()
    assert (pixels[1:79, 1:79] > 240).all()
    assert (pixels[80:] < 128).any()


def test_hostile_labels_are_text_in_one_cell() -> None:
    table = typical_table([noisy("<img src=http://evil.example/x>|](y)\n# z", 8)], "highest")
    *_, row = table.splitlines()
    plain = re.sub(r"\\.", "", re.sub(r"data:image/png;base64,[^)]*", "", row))
    assert plain.count("|") == 4
    assert not re.search(r"[<>#]", plain)
    assert plain.count("(") == plain.count("]") == 1, "the picture's own"


def test_the_labels_with_the_most_images_are_shown() -> None:
    counts = {f"label {place:03}": place % 50 for place in range(200)}
    shown = pictured_labels(counts)
    assert len(shown) == PICTURED_LABELS
    assert shown[:5] == ["label 049", "label 099", "label 149", "label 199", "label 048"]
    assert pictured_labels({}) == []
