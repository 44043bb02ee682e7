"""One image in a hundred is bad: from every source each is mined right, or set aside by name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from written_images import claiming, image_table, own_name, parquet_of, photo, put, tar_of

from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shards import good, images_of, index_shard
from diffmining_core.images.sources import open_source

SIZE = 48
RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(left: Any, right: Any, width: int = 64) -> npt.NDArray[np.uint8]:
    """48 rows, the left half of one colour and the right of another."""
    shown = np.empty((48, width, 3), np.uint8)
    shown[:, : width // 2], shown[:, width // 2 :] = left, right
    return shown


def palette() -> bytes:
    image = Image.new("P", (64, 48), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 48))
    return encoded(image, "png", transparency=1)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    stored = np.ascontiguousarray(np.rot90(halves(RED, BLUE)))
    return encoded(Image.fromarray(stored), "png", exif=exif)


def animated() -> bytes:
    first, second = Image.new("RGB", (64, 48), RED), Image.new("RGB", (64, 48), BLUE)
    return encoded(first, "gif", save_all=True, append_images=[second])


def sixteen_bits() -> bytes:
    grey = np.full((48, 64), 200 * 256 + 77, np.uint16)
    return encoded(Image.fromarray(grey), "png")


MINED = {
    "wrong-extension.gif": (encoded(Image.fromarray(halves(RED, BLUE)), "png"), halves(RED, BLUE)),
    "cmyk.jpg": (
        encoded(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "jpeg", quality=100),
        halves(RED, RED),
    ),
    "sixteen-bits.png": (sixteen_bits(), halves((200,) * 3, (200,) * 3)),
    "palette.png": (palette(), halves(RED, WHITE)),
    "turned.png": (turned(), halves(RED, BLUE)),
    "animated.gif": (animated(), halves(RED, RED)),
}
SET_ASIDE = {
    "truncated.png": (photo()[:-500], "image file is truncated"),
    "empty.jpg": (b"", "no known image format"),
    "bomb.png": (claiming(60_000, 60_000), "more pixels than are safe to decode"),
    "page.jpg": (b"<html>404</html>", "no known image format"),
}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A thousand images, one in a hundred bad."""
    bad = {name: data for name, (data, _) in (MINED | SET_ASIDE).items()}
    tiny = encoded(Image.new("RGB", (64, 48), BLUE), "png")
    return {f"{i:03d}.png": tiny for i in range(990)} | bad


def write(kind: str, url: str, files: dict[str, bytes]) -> str:
    """The address of a dataset of one label with these files."""
    if kind == "folder":
        for name, data in files.items():
            put(url, f"rome/{name}", data)
    elif kind == "tar":
        members: dict[str, bytes] = {}
        for name, data in files.items():
            members |= {name: data, f"{name.partition('.')[0]}.cls": b"rome"}
        put(url, "x.tar", tar_of(members))
    else:
        put(url, "x.parquet", parquet_of(image_table(files, ["rome"] * len(files)), 300))
    return url


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_every_bad_image_is_mined_right_or_set_aside_by_name(
    url: str, kind: str, files: dict[str, bytes]
) -> None:
    wanted = files if url.startswith("/") else dict(list(files.items())[970:])
    source = open_source(write(kind, url, wanted))
    (shard,) = source.plan([], 2000).new
    table = index_shard(shard.images)
    assert table.num_rows == len(wanted)
    reasons = {
        own_name(row["uri"]): row["set_aside"]
        for row in table.to_pylist()
        if row["set_aside"] is not None
    }
    assert reasons.keys() == SET_ASIDE.keys()
    for name, (_, reason) in SET_ASIDE.items():
        assert reason in reasons[name]
    images = {own_name(image.uri): image for image in images_of(good(table), "")}
    assert len(images) + len(reasons) == len(wanted)
    for name, (_, shown) in MINED.items():
        image = images[name]
        assert (image.width, image.height) == (64, 48)
        pixels = load_pixels(image.uri, SIZE, image.image_id)
        assert_allclose(pixels.astype(int), shown, atol=3, err_msg=name)
