from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffmining_core.baselines.embedding import with_features
from diffmining_core.baselines.reading import labelled_pixels
from diffmining_core.errors import ImageError
from diffmining_core.images.pixels import content_id
from diffmining_core.images.shard_image import ShardImage


def written(folder: Path, name: str, grey: int) -> tuple[str, str]:
    """Id and address of an image of one grey."""
    path = folder / name
    Image.new("RGB", (48, 40), (grey, grey, grey)).save(path)
    return content_id(path.read_bytes()), str(path)


def test_an_image_of_several_labels_is_read_once(tmp_path: Path) -> None:
    one, other = written(tmp_path, "a.png", 10), written(tmp_path, "b.png", 20)
    rows = [
        ShardImage(*one, "oslo", 48, 40),
        ShardImage(*one, "rome", 48, 40),
        ShardImage(*other, "rome", 48, 40),
    ]
    read = list(labelled_pixels(rows, 40))
    assert [(image.image_id, image.labels) for image in read] == [
        (one[0], ("oslo", "rome")),
        (other[0], ("rome",)),
    ]
    assert [int(image.pixels[0, 0, 0]) for image in read] == [10, 20]
    assert read[0].pixels.shape == (40, 48, 3)


def test_only_an_image_that_nobody_had_opened_may_be_unusable(tmp_path: Path) -> None:
    image_id, uri = written(tmp_path, "a.png", 10)
    Path(uri).write_bytes(b"no image")
    assert list(labelled_pixels([ShardImage(image_id, uri, "x", 48, 40, declared=True)], 40)) == []
    with pytest.raises(ImageError, match=r"a\.png"):
        list(labelled_pixels([ShardImage(image_id, uri, "x", 48, 40)], 40))


def test_features_stand_beside_their_patches_and_each_image_is_read_once(tmp_path: Path) -> None:
    images = [written(tmp_path, f"{grey}.png", grey) for grey in (10, 20)]
    order = [0, 1, 0]
    patches = pa.table(
        {
            "image_id": [images[at][0] for at in order],
            "uri": [images[at][1] for at in order],
            "y": [0, 1, 2],
            "x": [3, 4, 5],
            "size": [8, 8, 8],
        }
    )
    seen = []

    def embed(pixels, corners, size):  # type: ignore[no-untyped-def]
        seen.append((int(pixels[0, 0, 0]), list(corners), size))
        return np.array([[pixels[0, 0, 0], y, x] for y, x in corners], np.float32)

    table = with_features(patches, 40, embed)
    assert seen == [(10, [(0, 3), (2, 5)], 8), (20, [(1, 4)], 8)]
    assert table["feature"].to_pylist() == [[10, 0, 3], [20, 1, 4], [10, 2, 5]]
    assert table.drop_columns(["feature"]).equals(patches)
