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
    SCALED_BITS,
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


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_greys_of_fewer_bits_are_scaled_by_their_own_range(kind: str, bits: int) -> None:
    grey = np.linspace(0, 2**bits - 1, 40 * 32).reshape(32, 40).astype(np.uint16)
    shown = decode_rgb(encoded(Image.fromarray(grey), kind))
    assert shown.info[SCALED_BITS] == bits
    assert_array_equal(np.asarray(shown)[..., 0], (grey >> (bits - 8)).astype(np.uint8))


@pytest.mark.parametrize("step", [256, 257])
def test_a_dark_image_of_the_full_range_stays_dark(step: int) -> None:
    grey = (np.linspace(0, 30, 40 * 32).reshape(32, 40).astype(np.uint16)) * np.uint16(step)
    shown = decode_rgb(encoded(Image.fromarray(grey)))
    assert SCALED_BITS not in shown.info
    assert np.asarray(shown).max() == 30


def png_with(data: bytes, kind: bytes, content: bytes) -> bytes:
    """The PNG with one chunk more after its header."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + struct.pack(">I", len(content)) + kind + content + checksum + data[33:]


def test_the_range_that_a_file_tells_counts() -> None:
    dim = np.linspace(0, 800, 40 * 32).reshape(32, 40).astype(np.uint16)
    told = {
        "sBIT": png_with(encoded(Image.fromarray(dim)), b"sBIT", b"\x0c"),
        "MaxSampleValue": encoded(Image.fromarray(dim), "tiff", tiffinfo={281: 4095}),
    }
    for data in told.values():
        shown = decode_rgb(data)
        assert shown.info[SCALED_BITS] == 12
        assert np.asarray(shown).max() == 800 >> 4
    absurd = png_with(encoded(Image.fromarray(dim)), b"sBIT", b"\xff")
    assert decode_rgb(absurd).info[SCALED_BITS] == 10
    full = png_with(encoded(Image.fromarray(dim)), b"sBIT", b"\x10")
    assert np.asarray(decode_rgb(full)).max() == 800 >> 8


def test_white_is_zero_where_a_tiff_says_so() -> None:
    grey = np.linspace(0, 65535, 40 * 32).reshape(32, 40).astype(np.uint16)
    shown = pixels(encoded(Image.fromarray(grey), "tiff", tiffinfo={262: 0}))
    assert_array_equal(shown[..., 0], ((65535 - grey) >> 8).astype(np.uint8))


def test_greys_of_a_portable_map_are_scaled_by_its_header() -> None:
    grey = np.linspace(0, 4095, 40 * 32).astype(">u2")
    shown = pixels(b"P5 40 32 4095\n" + grey.tobytes())
    assert abs(shown[..., 0].reshape(-1).astype(int) - (grey >> 4)).max() <= 1


def test_integers_within_sixteen_bits_are_greys() -> None:
    grey = np.linspace(0, 4095, 40 * 32).reshape(32, 40).astype(np.int32)
    shown = pixels(encoded(Image.fromarray(grey), "tiff"))
    assert_array_equal(shown[..., 0], (grey >> 4).astype(np.uint8))


def deep_colours(top: int) -> bytes:
    """A PNG of 16-bit colours up to `top`, which Pillow cannot write."""
    rows = np.linspace(0, top, 40 * 32 * 3).reshape(32, 120).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 32, 16, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def test_deep_colours_that_would_be_nearly_black_are_refused() -> None:
    assert pixels(deep_colours(65535)).max() == 255
    with pytest.raises(ImageError, match="16-bit colours fill 14 bits or fewer"):
        decode_rgb(deep_colours(4095))


@pytest.mark.parametrize(("dtype", "says"), [(np.int32, "integers"), (np.float32, "fractions")])
def test_numbers_of_no_set_range_are_no_image(dtype: type, says: str) -> None:
    for value in (70_000, -1):
        data = encoded(Image.fromarray(np.full((40, 40), value, dtype)), "tiff")
        with pytest.raises(ImageError, match=f"its pixels are {says} of no set range"):
            decode_rgb(data)


HEIC = Path(__file__).parents[2] / "cases" / "phone.heic"


def test_photos_of_phones_are_read() -> None:
    assert decode_rgb(HEIC.read_bytes()).size == (96, 128)
    for kind, options in (("jpeg2000", {}), ("avif", {"quality": 100})):
        shown = pixels(encoded(Image.fromarray(RNG_IMAGE), kind, **options))
        assert shown.shape == RNG_IMAGE.shape


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS is not read"),
        (b"8BPS" + bytes(30), "PSD is not read"),
        (HEIC.read_bytes()[:32], "broken HEIF"),
    ],
)
def test_only_formats_of_photos_are_read(data: bytes, says: str) -> None:
    for read in (decode_rgb, header_size):
        with pytest.raises(ImageError, match=says):
            read(data)


def test_the_preview_in_a_raw_file_is_no_photo() -> None:
    preview = encoded(Image.fromarray(RNG_IMAGE), "tiff", tiffinfo={254: 1})
    with pytest.raises(ImageError, match="a camera's raw file"):
        decode_rgb(preview)


BROKEN_EXIF = b"Exif\x00\x00\x00\x08\x00\x02\x01\x12\x00\x03"


def with_broken_metadata() -> dict[str, bytes]:
    """Files whose pixels are sound."""
    image = Image.fromarray(RNG_IMAGE)
    png, jpeg = encoded(image), encoded(image, "jpeg", quality=100, subsampling=0)
    text = b"Comment\0\0" + zlib.compress(bytes(2_000_000))
    profile = b"p\0\0" + zlib.compress(bytes(2_000_000))
    bad_text = png_with(png, b"tEXt", b"a\0b")
    return {
        "exif": png_with(png, b"eXIf", BROKEN_EXIF),
        "a large text": png_with(png, b"zTXt", text),
        "a large profile": png_with(png, b"iCCP", profile),
        "a text's checksum": bad_text[:46] + b"!" + bad_text[47:],
        "no orientation": encoded(image, "webp", lossless=True, exif=BROKEN_EXIF),
        "jpeg": jpeg[:2] + b"\xff\xe1\x00\x0aExif\0\0II" + jpeg[2:],
    }


@pytest.mark.parametrize("what", with_broken_metadata())
def test_broken_metadata_are_passed_over(what: str) -> None:
    shown = pixels(with_broken_metadata()[what])
    assert np.abs(shown.astype(int) - RNG_IMAGE).max() <= (9 if what == "jpeg" else 0)


@pytest.mark.parametrize("kind", ["webp", "gif", "png", "tiff", "mpo"])
def test_the_first_of_several_pictures_counts(kind: str) -> None:
    red, blue = (Image.new("RGB", (40, 32), colour) for colour in ("red", "blue"))
    shown = pixels(encoded(red, kind, save_all=True, append_images=[blue]))
    assert np.abs(shown.astype(int) - (255, 0, 0)).max() <= 3


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


def test_a_targa_file_is_not_taken_for_cursors() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "tga", compression=None)
    with pytest.raises(ImageError, match="TGA is not read; save it as PNG"):
        header_size(buffer.getvalue())
