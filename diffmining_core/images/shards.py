"""Dataset shards: tables of about 1000 images each, checked once when they enter.

In: a folder with one sub-folder per label, on any fsspec file system. Out: immutable Parquet
tables, with every image that cannot be used set aside and its reason beside it. Images stay where
they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from diffmining_core.errors import InputError
from diffmining_core.images.pixels import decode_rgb, file_bytes, header_size
from diffmining_core.store.roots import explained

ALGO = "1"
"""Version of what decides a shard's rows, given the files' bytes."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

MIN_SIDE = 32
MAX_SIDE = 20_000
MAX_PIXELS = 89_000_000
"""Just under the number of pixels from which Pillow itself suspects an attack."""
MAX_ASPECT = 8
"""Longer side over shorter side."""

READERS = 8
"""Threads that each hold one image at a time."""

LARGE = 20_000_000
"""Pixels (80 MB decoded, some times that while converted) from which only one thread decodes."""

SHARD_SCHEMA = pa.schema(
    [
        # First 32 hex digits of the sha256 of the file's bytes; null if they could not be read.
        pa.field("image_id", pa.string()),
        # Absolute local path or fsspec URL.
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        # Pixels, upright (after EXIF; as in the header if it was not decoded); null if unknown.
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        # From the listing, to see changes without reading.
        pa.field("fingerprint", pa.string(), nullable=False),
        # Null for a good image, else why it is not used.
        pa.field("set_aside", pa.string()),
    ]
)

_large_turn = threading.Lock()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundImage:
    """An image file as listed, not yet read; `fingerprint` changes when the file does."""

    uri: str
    label: str
    fingerprint: str


@dataclass(frozen=True)
class ShardImage:
    """A good image of a shard; width and height in pixels, upright."""

    image_id: str
    uri: str
    label: str
    width: int
    height: int


@dataclass(frozen=True)
class IndexPlan:
    """keep: keys of known shards that still hold. new: the files of each shard to be indexed."""

    keep: list[str]
    new: list[list[FoundImage]]


def list_folder(url: str) -> list[FoundImage]:
    """The images of a folder with one sub-folder per label, in an order that mixes the labels.

    Files at any depth below a label's folder have that label. A pattern such as `clothing/*` stands
    for several such folders, say of splits that have the same labels. Hidden files and folders are
    skipped; other files that are no images are counted in the log. InputError if there is no such
    folder, or no sub-folder with images.
    """
    try:
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"dataset {url!r} is not understood ({error}): give a local folder or an address such "
            "as s3://bucket/folder"
        ) from error
    with explained(url):
        is_pattern = has_magic(path) and not fs.isdir(path)
        folders = sorted(fs.glob(path)) if is_pattern else [path]
        listed = [file for folder in folders for file in _listed(fs, folder)]
    if not listed and not any(fs.isdir(folder) for folder in folders):
        raise InputError(f"dataset {url}: there is no such folder; give one that exists")
    visible = [file for file in listed if not _is_hidden(file[0])]
    labelled = [file for file in visible if _is_labelled_image(file[0])]
    if not labelled:
        raise InputError(_no_images(url, [inner for inner, _, _ in visible]))
    if ignored := len(visible) - len(labelled):
        logger.info("dataset %s: %d files that are no labelled images are ignored", url, ignored)
    labelled.sort(key=lambda file: hashlib.sha256(file[0].encode()).digest())
    return [FoundImage(uri, inner.split("/")[0], mark) for inner, uri, mark in labelled]


def _no_images(url: str, others: list[str]) -> str:
    wanted = "give a folder with one sub-folder of images per label"
    if any(_is_image(inner) for inner in others):
        return f"dataset {url}: its images lie in no sub-folder, so they have no label; {wanted}"
    return f"dataset {url}: its sub-folders hold no images (other files: {len(others)}); {wanted}"


def _is_hidden(inner: str) -> bool:
    return any(part.startswith(".") for part in inner.split("/"))


def _is_image(inner: str) -> bool:
    return PurePosixPath(inner).suffix.lower() in IMAGE_SUFFIXES


def _is_labelled_image(inner: str) -> bool:
    return "/" in inner and _is_image(inner)


def _listed(fs: Any, folder: str) -> Iterator[tuple[str, str, str]]:
    """(path below the folder, uri, fingerprint) of every file below a folder."""
    if isinstance(fs, LocalFileSystem):
        return _listed_local(Path(folder))
    return _listed_remote(fs, folder)


def _listed_local(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(path below the folder, absolute path, fingerprint) of each file; links are followed."""
    entered: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        # A link back up would otherwise be walked without end.
        if (real := os.path.realpath(here)) in entered:
            folders.clear()
            continue
        entered.add(real)
        for name in files:
            file = Path(here, name)
            if not file.exists():  # a dangling link
                continue
            status = file.stat()
            inner = file.relative_to(folder).as_posix()
            yield inner, str(file), f"{status.st_size}-{status.st_mtime_ns}"


def _listed_remote(fs: Any, folder: str) -> Iterator[tuple[str, str, str]]:
    for path, info in fs.find(folder, detail=True).items():
        inner = path.removeprefix(folder).lstrip("/")
        if inner:
            yield inner, fs.unstrip_protocol(path), _fingerprint(info)


def _fingerprint(info: Mapping[str, Any]) -> str:
    """Size and the best of what the listing says of the content: its ETag, else its time."""
    for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"):
        if name in info:
            return f"{info['size']}-{str(info[name]).strip(chr(34))}"
    return str(info["size"])


def plan_index(
    found: Sequence[FoundImage], known: Mapping[str, pa.Table], shard_rows: int
) -> IndexPlan:
    """Which known shards still hold, and how the other files are cut into new shards.

    A shard is immutable: it is kept if each of its files is still there, unchanged, and in no shard
    kept already (the larger come first). Files of no kept shard go, in the order found, into new
    shards of `shard_rows` rows, the last one shorter.
    """
    left = {file.uri: file for file in found}
    keep = []
    for key in sorted(known, key=lambda key: (-known[key].num_rows, key)):
        files = _files_of(known[key])
        if files and all(left.get(file.uri) == file for file in files):
            keep.append(key)
            for file in files:
                del left[file.uri]
    rest = list(left.values())
    return IndexPlan(
        keep=keep,
        new=[rest[start : start + shard_rows] for start in range(0, len(rest), shard_rows)],
    )


def _files_of(table: pa.Table) -> list[FoundImage]:
    columns = (table.column(name).to_pylist() for name in ("uri", "label", "fingerprint"))
    return [FoundImage(*row) for row in zip(*columns, strict=True)]


def index_shard(
    found: Sequence[FoundImage], on_progress: Callable[[int], object] = lambda images: None
) -> pa.Table:
    """Read, hash and check each image: a table of SHARD_SCHEMA, in the order of `found`.

    on_progress is called with 1 after each image, in this thread. Storage faults that may pass
    raise OSError; a file that is gone or closed to us is set aside like a broken one.
    """
    rows = []
    with ThreadPoolExecutor(READERS) as pool:
        for row in pool.map(_row, found):
            rows.append(row)
            on_progress(1)
    return pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)


def _row(found: FoundImage) -> dict[str, str | int | None]:
    row: dict[str, str | int | None] = {
        "uri": found.uri,
        "label": found.label,
        "fingerprint": found.fingerprint,
    }
    try:
        data = file_bytes(found.uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        return row | {"set_aside": f"cannot be read: {error}"}
    except InputError as error:
        if isinstance(error.__cause__, PermissionError):  # of this one file
            return row | {"set_aside": f"cannot be read: {error.__cause__}"}
        raise
    row["image_id"] = hashlib.sha256(data).hexdigest()[:32]
    try:
        row["width"], row["height"] = size = header_size(data)
        _check_size(*size)
        with _large_turn if size[0] * size[1] >= LARGE else nullcontext():
            row["width"], row["height"] = decode_rgb(data).size
    except InputError as error:
        return row | {"set_aside": str(error)}
    return row


def _check_size(width: int, height: int) -> None:
    """InputError with the reason if an image of this size is not used."""
    short, long = sorted((width, height))
    if short < MIN_SIDE:
        raise InputError(f"shorter side is {short} px, under {MIN_SIDE}")
    if long > MAX_SIDE:
        raise InputError(f"longer side is {long} px, over {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise InputError(f"{width} × {height} px are over {MAX_PIXELS} pixels")
    if long > MAX_ASPECT * short:
        raise InputError(f"{width} × {height} px: one side is over {MAX_ASPECT} times the other")


def shard_content_id(table: pa.Table) -> str:
    """Sha256 hex of the rows' image ids, labels and whether each is used, in order.

    Places and times do not enter: the same images elsewhere have the same id.
    """
    digest = hashlib.sha256()
    columns = (table.column(name).to_pylist() for name in ("image_id", "label", "set_aside"))
    for image_id, label, set_aside in zip(*columns, strict=True):
        digest.update(json.dumps([image_id, label, set_aside is None]).encode() + b"\n")
    return digest.hexdigest()


def good(table: pa.Table) -> pa.Table:
    """The rows that are not set aside."""
    return table.filter(pc.is_null(table.column("set_aside")))


def images_of(table: pa.Table) -> list[ShardImage]:
    """The rows of a table of good images."""
    columns = ["image_id", "uri", "label", "width", "height"]
    return [ShardImage(**row) for row in table.select(columns).to_pylist()]


def check_labels(counts: Mapping[str, int], min_images: int) -> None:
    """InputError naming the labels with fewer than `min_images` good images."""
    few = {label: count for label, count in sorted(counts.items()) if count < min_images}
    if few:
        named = ", ".join(f"{label} ({count})" for label, count in few.items())
        raise InputError(
            f"each label needs {min_images} usable images or more, these have fewer: {named}; add "
            "images, or take these folders out"
        )


def check_set_aside(table: pa.Table, max_bad_share: float) -> None:
    """InputError with the commonest reasons if more than this share (0 to 1) is set aside."""
    bad = table.filter(pc.is_valid(table.column("set_aside")))
    if bad.num_rows <= max_bad_share * table.num_rows:
        return
    reasons = Counter(bad.column("set_aside").to_pylist()).most_common(3)
    named = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    raise InputError(
        f"{bad.num_rows} of {table.num_rows} images of a shard cannot be used, more than the "
        f"{max_bad_share:.0%} allowed ({named}), the first being {bad.column('uri')[0]}; mend or "
        "remove them, or allow a larger share"
    )
