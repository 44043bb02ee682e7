from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from diffmining_core.errors import ImageError
from diffmining_core.images.pixels import (
    content_id,
    decode_rgb,
    header_size,
    load_pixels,
    resized_hw,
)

RNG_IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("width", "height", "size", "hw"),
    [
        (512, 512, 512, (512, 512)),
        (640, 480, 512, (512, 680)),  # 682.7, cropped
        (480, 640, 512, (680, 512)),
        (3000, 4000, 64, (80, 64)),  # 85.3
        (33, 33, 64, (64, 64)),  # enlarged
        (1001, 999, 512, (512, 512)),  # 513.03
        (100, 100, 100, (96, 96)),  # size itself is no multiple of 8
        (32, 256, 512, (4096, 512)),
    ],
)
def test_the_shorter_side_is_resized_and_both_are_cropped_to_eights(
    width: int, height: int, size: int, hw: tuple[int, int]
) -> None:
    assert resized_hw(width, height, size) == hw


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_their_pixels(kind: str) -> None:
    data = encoded(
        Image.fromarray(RNG_IMAGE), kind, **({"lossless": True} if kind == "webp" else {})
    )
    assert_array_equal(pixels(data), RNG_IMAGE)
    assert header_size(data) == (80, 48)


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
    ],
)
def test_each_mode_is_shown_as_rgb_over_white(mode: str, colour: Any, rgb: Any) -> None:
    data = encoded(Image.new(mode, (40, 32), colour))
    assert_array_equal(pixels(data), np.full((32, 40, 3), rgb, np.uint8))


def test_cmyk_is_shown_as_rgb() -> None:
    data = encoded(Image.new("CMYK", (40, 32), (0, 255, 255, 0)), "jpeg", quality=100)
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 3


def test_a_palette_with_a_transparent_colour_is_shown_over_white() -> None:
    image = Image.new("P", (40, 32), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 20, 32))
    shown = pixels(encoded(image, "gif", transparency=1))
    assert_array_equal(shown[:, :20], np.full((32, 20, 3), 255))
    assert_array_equal(shown[:, 20:], np.full((32, 20, 3), (255, 0, 0)))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bit_greys_become_eight_bit_ones(kind: str) -> None:
    grey = np.linspace(0, 65535, 40 * 32).reshape(32, 40).astype(np.uint16)
    shown = pixels(encoded(Image.fromarray(grey), kind))
    assert_array_equal(shown, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize(("dtype", "says"), [(np.int32, "integers"), (np.float32, "fractions")])
def test_numbers_of_no_set_range_are_no_image(dtype: type, says: str) -> None:
    data = encoded(Image.fromarray(np.zeros((40, 40), dtype)), "tiff")
    with pytest.raises(ImageError, match=f"its pixels are {says} of no set range"):
        decode_rgb(data)


TURNED = {  # what a viewer shows for each EXIF orientation of the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RNG_IMAGE), exif=exif)
    assert_array_equal(pixels(data), TURNED[orientation](RNG_IMAGE))
    assert header_size(data) == (80, 48)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    data = encoded(Image.fromarray(RNG_IMAGE), kind)
    decode_rgb(data)
    with pytest.raises(ImageError, match=r"not a readable image: .+"):
        decode_rgb(data[: len(data) * 3 // 4])


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    for read in (decode_rgb, header_size):
        with pytest.raises(ImageError) as caught:
            read(data)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)  # the same words in every run


def forged_png(width: int, height: int) -> bytes:
    """A PNG that claims a size; its few bytes of data do not matter."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def test_an_absurd_size_is_refused_by_the_header() -> None:
    assert header_size(forged_png(9000, 9000)) == (9000, 9000)
    for read in (decode_rgb, header_size):
        with pytest.raises(ImageError, match="more pixels than are safe to decode"):
            read(forged_png(60_000, 60_000))


@pytest.mark.parametrize("place", ["{folder}/a b#.png", "memory://pixels/a.png"])
@pytest.mark.parametrize(("size", "hw"), [(48, (48, 80)), (33, (32, 48)), (100, (96, 160))])
def test_the_model_size_image_is_resized_then_cropped_right_and_below(
    tmp_path: Path, place: str, size: int, hw: tuple[int, int]
) -> None:
    uri = place.format(folder=tmp_path)
    with fsspec.open(uri, "wb") as file:
        file.write(encoded(Image.fromarray(RNG_IMAGE)))
    loaded = load_pixels(uri, size)
    assert loaded.dtype == np.uint8
    assert loaded.shape == (*hw, 3)
    assert loaded.flags.c_contiguous
    whole = Image.fromarray(RNG_IMAGE).resize(
        (round(80 * size / 48), size), Image.Resampling.LANCZOS
    )
    assert_array_equal(loaded, np.asarray(whole)[: hw[0], : hw[1]])


def test_shapes_are_known_from_the_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(RNG_IMAGE), exif=exif))
    loaded = load_pixels(str(tmp_path / "a.png"), 64)
    width, height = decode_rgb((tmp_path / "a.png").read_bytes()).size
    assert (width, height) == (48, 80)
    assert loaded.shape[:2] == resized_hw(width, height, 64) == (104, 64)


def test_an_image_that_is_gone_or_changed_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.png")
    with pytest.raises(ImageError, match=f"image {uri} is not there"):
        load_pixels(uri, 64)
    Path(uri).write_bytes(b"no")
    with pytest.raises(ImageError, match=f"image {uri}: not a readable image.*it has changed"):
        load_pixels(uri, 64)


def test_the_bytes_are_those_of_the_image_id(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RNG_IMAGE))
    uri = str(tmp_path / "a.png")
    Path(uri).write_bytes(data)
    assert content_id(data) == hashlib.sha256(data).hexdigest()[:32]
    assert_array_equal(load_pixels(uri, 48, content_id(data)), RNG_IMAGE)
    with pytest.raises(ImageError, match=r"not those of its image id; it has changed"):
        load_pixels(uri, 48, "0" * 32)


def test_an_image_that_was_never_good_has_not_changed(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.png")
    Path(uri).write_bytes(b"no")
    with pytest.raises(ImageError, match=r"no known image format$"):
        load_pixels(uri, 48, content_id(b"no"))
