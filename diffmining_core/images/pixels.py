"""From an image file's bytes to the pixels a model sees, by one rule everywhere.

The model-size image: EXIF orientation applied, RGB, resized (Lanczos) so that the shorter side has
`size` pixels, cropped at the right and at the bottom to multiples of 8. At most 7 pixels at those
two edges are not seen. All coordinates of the project (y, x from the top left) are pixels of it.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from diffmining_core.errors import ImageError, UnreadableError
from diffmining_core.images.addresses import read_bytes

IMAGE_MULTIPLE = 8
"""Pixels along one latent cell of Stable Diffusion: model-size sides are multiples of it."""

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

    ImageError with the reason if the bytes are no image that can be read to its end. Colour
    profiles are not applied.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except ImageError:
        raise
    except Exception as error:  # on broken bytes Pillow's readers raise nearly anything
        raise ImageError(f"not a readable image: {_reason(error)}") from error


def header_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the file's header has them, before EXIF; no pixel is decoded.

    ImageError with the reason if there is no such header.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception as error:  # as above
        raise ImageError(f"not a readable image: {_reason(error)}") from error


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)  # native byte order
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"its pixels are {'integers' if image.mode == 'I' else 'fractions'} of no set range; "
            "save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    """Why Pillow gave up, in one line that is the same in every run."""
    if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
        return "no known image format"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "more pixels than are safe to decode"
    return " ".join(str(error).split()) or type(error).__name__
