"""Metadata in image files: read where pixels depend on them, else skipped."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"

_CHUNK = 12
"""Bytes of a PNG chunk beside its content: length, kind, checksum."""

_KEPT_CHUNKS = (b"tRNS", b"eXIf")
"""Optional chunks that pixels depend on: transparency, and which side is up."""

_KEPT_SEGMENTS = (0xE0, 0xEE)
"""Optional JPEG segments that pixels depend on: JFIF's and Adobe's, which tell the colours."""

_SCAN, _TEXT = 0xDA, 0xFE


class Chunk(NamedTuple):
    """Bytes `start` to `end` (exclusive) of a PNG, and what they hold."""

    kind: bytes
    content: bytes
    start: int
    end: int


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The whole chunks of a PNG; none of anything else."""
    start = len(PNG) if data.startswith(PNG) else len(data)
    while start + _CHUNK <= len(data):
        end = start + _CHUNK + int.from_bytes(data[start : start + 4])
        if end > len(data):
            return
        yield Chunk(data[start + 4 : start + 8], data[start + 8 : end - 4], start, end)
        start = end


def without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG file without what its pixels do not depend on; other files as they are.

    For files whose metadata cannot be read, such as broken EXIF or a text of over a megabyte.
    """
    if data.startswith(PNG):
        return _bare_png(data)
    return _bare_jpeg(data) if data.startswith(JPEG) else data


def _bare_png(data: bytes) -> bytes:
    kept, end = [PNG], len(PNG)
    for chunk in png_chunks(data):
        end = chunk.end
        whole = data[chunk.start : chunk.end]
        is_critical = chunk.kind[:1].isupper()
        if is_critical or (chunk.kind in _KEPT_CHUNKS and _is_sound(whole)):
            kept.append(whole)
    return b"".join([*kept, data[end:]])


def _is_sound(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _bare_jpeg(data: bytes) -> bytes:
    kept, start = [JPEG], len(JPEG)
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != _SCAN:
        marker = data[start + 1]
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        is_optional = marker == _TEXT or 0xE0 <= marker <= 0xEF
        if marker in _KEPT_SEGMENTS or not is_optional:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])
