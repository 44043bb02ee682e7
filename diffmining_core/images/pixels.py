"""From an image file's bytes to the pixels a model sees, by one rule everywhere.

The model-size image: EXIF orientation applied, RGB, resized (Lanczos) so that the shorter side has
`size` pixels, cropped at the right and at the bottom to multiples of 8. At most 7 pixels at those
two edges are not seen. All coordinates of the project (y, x from the top left) are pixels of it.

Only formats of photos are read, whatever a file is called. Metadata that cannot be read are passed
over; of files with several pictures the first counts.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from diffmining_core.errors import ImageError, UnreadableError
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.metadata import png_chunks, without_metadata

IMAGE_MULTIPLE = 8
"""Pixels along one latent cell of Stable Diffusion: model-size sides are multiples of it."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM")
"""The formats of Pillow that are read: photos, which need no other program. MPO counts as JPEG."""

SCALED_BITS = "scaled_bits"
"""Key in a decoded image's `info`: the bits of grey, fewer than 16, by which it was scaled."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bits of grey that instruments write into 16-bit files."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image upright, by EXIF orientation."""

_BITS_PER_SAMPLE, _WHITE_OR_BLACK, _MAX_SAMPLE_VALUE, _SUBFILE = 258, 262, 281, 254
_DNG_VERSION = 50706
"""Tags of TIFF files."""

T = TypeVar("T")

_CHANGED = (
    "it has changed since it was indexed: put the old one back, or start again (a manifest that "
    "gives image ids needs its new one)"
)


def resized_hw(width: int, height: int, size: int) -> tuple[int, int]:
    """(h, w) of the model-size image of an image of width × height pixels."""
    resized_width, resized_height = resized_size(width, height, size)
    return _multiple(resized_height), _multiple(resized_width)


def model_scale(width: int, height: int, size: int) -> tuple[float, float]:
    """(down, across): how many pixels of the model-size image one of width × height is.

    For places in the original image, such as boxes; the two differ by the rounding of the resize.
    """
    resized_width, resized_height = resized_size(width, height, size)
    return resized_height / height, resized_width / width


def original_square(
    y: int, x: int, side: int, width: int, height: int, size: int
) -> tuple[float, float, float, float]:
    """Where a square of the model-size image lies in its original: left, top, width, height.

    In pixels of the upright original of width × height, whose edges it never crosses.
    """
    down, across = model_scale(width, height, size)
    left, top = x / across, y / down
    return left, top, min(side / across, width - left), min(side / down, height - top)


def decode_rgb(data: bytes) -> Image.Image:
    """The whole image, upright, in RGB; transparent parts over white, 16-bit greys as 8-bit.

    Greys that fill 8, 10, 12 or 14 bits of 16 are scaled by these; `info[SCALED_BITS]` says so.
    ImageError with the reason if the bytes are no image that can be read to its end. Colour
    profiles are not applied.
    """

    def decoded(image: Image.Image) -> Image.Image:
        if _is_camera_raw(image, data):
            raise ImageError("it is a camera's raw file; develop it to JPEG or TIFF")
        image.load()
        shown = _rgb(image, data)
        method = _UPRIGHT.get(_orientation(image))
        upright = shown if method is None else shown.transpose(method)
        upright.info = {name: shown.info[name] for name in (SCALED_BITS,) if name in shown.info}
        return upright

    return _read(data, decoded)


def header_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the file's header has them, before EXIF; no pixel is decoded.

    ImageError with the reason if there is no such header.
    """
    return _read(data, lambda image: image.size)


def load_pixels(uri: str, size: int, image_id: str | None = None) -> npt.NDArray[np.uint8]:
    """The model-size image uint8 [h, w, 3] of the image at an address.

    ImageError naming the image if it is gone, cannot be read or decoded, or is not the one that had
    `image_id` (first 32 hex digits of the sha256 of its bytes).
    """
    try:
        data = read_bytes(uri)
        if image_id is not None and content_id(data) != image_id:
            data = read_bytes(uri)  # it may have been cut short on the way, once
            if content_id(data) != image_id:
                raise ImageError("its bytes are not those of its image id")
    except FileNotFoundError as error:
        raise ImageError(
            f"image {uri} is not there; put it back, or start again without it"
        ) from error
    except UnreadableError as error:
        raise ImageError(f"image {uri}: {error}; make it readable and start again") from error
    except ImageError as error:
        raise ImageError(f"image {uri}: {error}; {_CHANGED}") from error
    try:
        image = decode_rgb(data)
    except ImageError as error:
        changed = "" if image_id else f"; {_CHANGED}"
        raise ImageError(f"image {uri}: {error}{changed}") from error
    return np.array(model_size(image, size))


def model_size(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The image resized so that its shorter side has `size` pixels, and cropped."""
    resized = image.resize(resized_size(*image.size, size), resample)
    h, w = resized_hw(*image.size, size)
    return resized.crop((0, 0, w, h))


def content_id(data: bytes) -> str:
    """The image id of a file's bytes: the first 32 hex digits of their sha256."""
    return hashlib.sha256(data).hexdigest()[:32]


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) after the resize, before the crop."""
    short = min(width, height)
    return round(width * size / short), round(height * size / short)


def _multiple(side: int) -> int:
    return side - side % IMAGE_MULTIPLE


def _read(data: bytes, read: Callable[[Image.Image], T]) -> T:
    """The result of `read` on the image; tried again without metadata if that fails."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return read(image)
    except ImageError:
        raise
    except Exception as error:  # on broken bytes Pillow's readers raise nearly anything
        if (bare := without_metadata(data)) != data:
            return _read(bare, read)
        raise ImageError(f"not a readable image: {_reason(error, data)}") from error


def _is_camera_raw(image: Image.Image, data: bytes) -> bool:
    """Whether the first picture of a TIFF file is but a preview of what its camera took."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    is_reduced = int(image.tag_v2.get(_SUBFILE, 0)) & 1
    return bool(is_reduced) or _DNG_VERSION in image.tag_v2 or data[8:10] == b"CR"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of broken EXIF; the pixels are sound
        return 1


def _rgb(image: Image.Image, data: bytes) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey(image, data)
    if image.mode == "F":
        raise ImageError("its pixels are fractions of no set range; save it with 8 or 16 bits")
    _check_colours(image, data)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image, data: bytes) -> Image.Image:
    """Greys of more than 8 bits, white being the top of the range that they fill."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ImageError("its pixels are integers of no set range; save it with 8 or 16 bits")
    values = values.astype(np.uint16)  # native byte order
    bits = _range_bits(values, _told_bits(image, data))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_WHITE_OR_BLACK) == 0:
        values = (1 << bits) - 1 - values  # white is 0, which Pillow applies at 8 bits only
    shown = Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if bits < 16:
        shown.info[SCALED_BITS] = bits
    return shown


def _range_bits(values: npt.NDArray[np.uint16], told: int | None) -> int:
    """The bits that the values fill: those the file states if the values fit, else the fewest.

    Values that are whole bytes in the upper half, or in both, were 8-bit ones of the full range.
    """
    top = int(values.max())
    if told is not None and told <= DEPTHS[-1] and top < 1 << told:
        return max(told, DEPTHS[0])
    if top < 1 << 14 and any(not (values % step).any() for step in (256, 257)):
        return 16
    return next(bits for bits in DEPTHS if top < 1 << bits)


def _told_bits(image: Image.Image, data: bytes) -> int | None:
    """The bits of grey that a file states; None if it does not."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if top := image.tag_v2.get(_MAX_SAMPLE_VALUE):
            return int(top[0] if isinstance(top, tuple) else top).bit_length()
        (bits, *_) = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
        return int(bits) if bits < 16 else None
    if image.format == "PNG":
        told = (chunk.content for chunk in png_chunks(data) if chunk.kind == b"sBIT")
        return next((content[0] for content in told if content), None)
    return 16  # Pillow has scaled those of the other formats as their headers tell


def _check_colours(image: Image.Image, data: bytes) -> None:
    """ImageError for 16-bit colours that fill 14 bits or fewer: Pillow keeps the upper 8 only."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_deep = 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())
    else:
        header = next(png_chunks(data), None)
        is_deep = header is not None and header.content[8:9] == b"\x10"
    if not is_deep:
        return
    colours = "L" if image.mode == "LA" else "RGB"
    top = max(int(np.asarray(image.getchannel(colour)).max()) for colour in colours)
    if top < 1 << (14 - 8):
        raise ImageError(
            "its 16-bit colours fill 14 bits or fewer of their range, so that it would be shown "
            "nearly black; save it with 8 bits"
        )


def _reason(error: Exception, data: bytes) -> str:
    """Why Pillow gave up, in one line that is the same in every run."""
    if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
        known = _format_of(data)
        if known is None:
            return "no known image format"
        return f"broken {known}" if known in FORMATS else f"{known} is not read; save it as PNG"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "more pixels than are safe to decode"
    return " ".join(str(error).split()) or type(error).__name__


def _format_of(data: bytes) -> str | None:
    """The format that a file's first bytes indicate; the file is not decoded."""
    if data.startswith(b"\0\0\2\0\0\0"):  # else taken for cursors, of which there would be none
        return "TGA"
    Image.init()
    for name in Image.ID:
        accepts = Image.OPEN[name][1]
        try:
            if accepts is not None and accepts(data[:16]) is True:
                return name
        except (IndexError, struct.error):  # too short for that format
            continue
    return None


with suppress(ImportError):  # a machine that only runs models may lack it; HEIC is set aside there
    from pi_heif import register_heif_opener

    register_heif_opener()
