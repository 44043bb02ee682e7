"""Images, tars and Parquet files written for the tests of what reads them."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def photo(seed: int = 0, width: int = 48, height: int = 40, **options: Any) -> bytes:
    """A PNG of noise, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png", **options)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""
    data = photo()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def put(url: str, inner: str, data: bytes) -> None:
    """Write a file below a folder anywhere."""
    with fsspec.open(f"{url}/{inner}", "wb", auto_mkdir=True) as file:
        file.write(data)


def own_name(uri: str) -> str:
    """The last part of an address."""
    return uri.rpartition("/")[2]


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar with these members in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet_of(table: pa.Table, rows_per_group: int = 1000) -> bytes:
    """A Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_group)
    return buffer.getvalue()


def image_table(images: Mapping[str, bytes], labels: Sequence[Any]) -> pa.Table:
    """Images as Hugging Face data sets have them: a struct of bytes and path, and a label."""
    rows = [{"bytes": data, "path": name} for name, data in images.items()]
    return pa.table({"image": rows, "label": list(labels)})
