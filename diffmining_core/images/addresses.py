"""Where an image's bytes are, as one string, and how they are read.

An address (`uri`) is one of

- a file: an absolute local path or an fsspec URL;
- a member of a tar: `<tar>#bytes=START-END/NAME`, its data being the bytes START to END (exclusive)
  of the tar;
- a row of a Parquet file: `<parquet>#row=N&column=C/NAME`; column C is binary, or a struct with a
  binary field `bytes`.

The last part of every address is the image's own name.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from diffmining_core.errors import ImageError, UnreadableError
from diffmining_core.images.reach import (
    WEB,
    check_bytes,
    is_chain,
    is_local,
    local_path,
    max_image_bytes,
    scheme_of,
)
from diffmining_core.images.web import fetch
from diffmining_core.store.roots import explained, filesystem, s3_code

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TRUST_SECONDS = 10.0
"""Time after which a Parquet file that is being read is looked at again, for it may be replaced."""

MAX_ROW_GROUP_BYTES = 256 * 2**20
"""Memory for row groups; the latest is held whatever its size."""

AHEAD = 8 * 2**20
"""Bytes that are fetched at once from a server's file that is read to its end."""

_OF_THE_FILE = {
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
    errno.ENODEV,
}
"""Error numbers that concern one file; all others are faults of the disk or the machine."""

_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What messages call the types of directory entries that are not regular files."""

_S3_OF_THE_IMAGE = {"InvalidObjectState", "KeyTooLongError", "InvalidURI"}
"""S3's error codes about one object: it is archived, or its name cannot be a key."""

_MEMBER = re.compile(
    r"(?P<file>.+\.tar)#bytes=(?P<start>\d{1,18})-(?P<end>\d{1,18})/[^/]*", re.S | re.I
)
_ROW = re.compile(
    r"(?P<file>.+\.parquet)#row=(?P<row>\d{1,18})&column=(?P<column>[^/]*)/[^/]*", re.S | re.I
)
_ODD = re.compile(r"[^\w .,()+=@-]")


@dataclass(frozen=True)
class Member:
    """Bytes `start` to `end` (exclusive) of a tar."""

    file: str
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """One row of an image column of a Parquet file."""

    file: str
    row: int
    column: str


def member_uri(file: str, start: int, end: int, name: str) -> str:
    """The address of a tar's member; `name` is its path in the tar."""
    return f"{file}#bytes={start}-{end}/{_own_name(name)}"


def row_uri(file: str, row: int, column: str, name: str) -> str:
    """The address of a row of a Parquet file; `name` is what the image was called."""
    return f"{file}#row={row}&column={quote(column, safe='')}/{_own_name(name)}"


def archive_place(uri: str) -> Member | Row | None:
    """The place in a tar or Parquet file that an address stands for; None if it is a file's."""
    if match := _MEMBER.fullmatch(uri):
        return Member(match["file"], int(match["start"]), int(match["end"]))
    if match := _ROW.fullmatch(uri):
        return Row(match["file"], int(match["row"]), unquote(match["column"]))
    return None


def read_bytes(uri: str) -> bytes:
    """The bytes at an address; safe to call from many threads.

    Faults of this image alone raise FileNotFoundError or ImageError: it is missing, too large, not
    a regular file or not permitted, its host does not serve it, or its tar or Parquet file exists
    without it. Faults of the storage raise what `explained` does. Read the rows of a Parquet file
    in order: its row groups are cached for a while.
    """
    place = archive_place(uri)
    with explained(uri):
        if isinstance(place, Member):
            return _member_bytes(place)
        if isinstance(place, Row):
            return _row_bytes(place)
        return _file_bytes(uri)


def fingerprint(info: Mapping[str, Any]) -> str:
    """What changes when a file does, without spaces, from what a listing says of it.

    Its size and the best of: ETag, checksum, time.
    """
    for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"):
        mark = info.get(name)
        if isinstance(mark, datetime):  # some file systems give it so in one call, not in another
            mark = mark.timestamp()
        if mark is not None:
            return f"{info['size']}-{str(mark).strip(chr(34))}".replace(" ", "_")
    return str(info["size"])


def listed_bytes(mark: str) -> int:
    """The size in bytes that a fingerprint tells."""
    return int(mark.partition("-")[0])


def current_fingerprint(file: str) -> str:
    """The fingerprint of the file at a path or URL as it is now; FileNotFoundError if it is gone.

    A Parquet file's rows are from now on read from no older version.
    """
    fs, path = filesystem(file)
    with explained(file):
        version = fingerprint(fs.info(path))
    _versions[file] = version, time.monotonic()
    return version


def url_of(fs: Any, path: str) -> str:
    """The address of a path in a file system: itself on this machine, else a URL."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _own_name(name: str) -> str:
    return _ODD.sub("_", PurePosixPath(name).name)[-100:] or "image"


def _file_bytes(uri: str) -> bytes:
    if is_local(uri):
        return _local_bytes(local_path(uri))
    if scheme_of(uri) in WEB and not is_chain(uri):
        return fetch(uri)
    fs, path = _known_filesystem(uri)
    limit = max_image_bytes()
    if "s3" not in fs.protocol:
        size = fs.size(path)
        if size is not None:
            check_bytes(size)
        return bytes(fs.cat_file(path))
    try:
        data = bytes(fs.cat_file(path, start=0, end=limit + 1))
    except OSError as error:
        if s3_code(error) == "InvalidRange":  # S3's answer for an empty file
            return b""
        if s3_code(error) in _S3_OF_THE_IMAGE:
            raise UnreadableError(f"S3 answers {s3_code(error)}") from error
        raise
    check_bytes(len(data))
    return data


def _known_filesystem(uri: str) -> tuple[Any, str]:
    try:
        return filesystem(uri)
    except (ImportError, ValueError) as error:
        protocol = scheme_of(uri) or uri.partition("::")[0]
        raise UnreadableError(f"addresses of {protocol} cannot be read ({error})") from error


def _local_bytes(path: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of a regular file of this machine, or some of them; nothing else is opened."""
    try:
        _check_regular(Path(path).stat())
        # One that becomes a pipe at this moment must not be waited for; Path has no opener.
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            _check_regular(status)
            size = (status.st_size if end is None else min(status.st_size, end)) - start
            check_bytes(size)
            file.seek(start)
            # One byte more shows that a file is growing.
            return file.read(max(0, size) + (end is None))
    except FileNotFoundError:
        raise
    except ValueError as error:  # a NUL, or no UTF-8
        raise UnreadableError(f"it is no name of a file ({error})") from error
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise UnreadableError(f"cannot be read: {error.strerror}") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def not_a_file(status: os.stat_result) -> str | None:
    """Why an entry of a local folder is never opened; None for a regular file."""
    if stat.S_ISREG(status.st_mode):
        return None
    kind = _FILE_KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    return f"it is {kind}, not a file"


def _check_regular(status: os.stat_result) -> None:
    if fault := not_a_file(status):
        raise UnreadableError(fault)


def _member_bytes(place: Member) -> bytes:
    if place.start == place.end:
        return b""  # S3 has no empty ranges
    check_bytes(place.end - place.start)
    if is_local(place.file):
        data = _local_bytes(local_path(place.file), place.start, place.end)
    elif scheme_of(place.file) in WEB:
        data = fetch(place.file, place.start, place.end)
    else:
        data = _part_of(place)
    if len(data) != place.end - place.start:
        raise ImageError("its tar is shorter than when it was listed")
    return data


def _part_of(place: Member) -> bytes:
    fs, path = _known_filesystem(place.file)
    try:
        return bytes(fs.cat_file(path, start=place.start, end=place.end))
    except FileNotFoundError:
        raise
    except OSError:  # S3's answer where the file ends before `start`
        if fs.size(path) < place.end:
            return b""
        raise


# By Parquet file: its fingerprint and when it was asked for.
_versions: dict[str, tuple[str, float]] = {}


def _recent_fingerprint(file: str) -> str:
    version, asked = _versions.get(file, ("", 0.0))
    if version and time.monotonic() - asked < TRUST_SECONDS:
        return version
    return current_fingerprint(file)


@contextmanager
def opened(file: str, ahead: int = 0) -> Iterator[Any]:
    """The file at a path or URL, to read from; `ahead`: bytes fetched at once from a server.

    With none, it is fetched in the pieces that are asked for.
    """
    fs, path = filesystem(file)
    if isinstance(fs, MemoryFileSystem):  # one file object, with one position, for all threads
        yield io.BytesIO(fs.cat_file(path))
        return
    how = {"cache_type": "readahead", "block_size": ahead} if ahead else {"cache_type": "none"}
    with fs.open(path, "rb", **how) as handle:
        yield handle


@contextmanager
def opened_parquet(file: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """The Parquet file at a path or URL; ImageError, here and while reading, if it is damaged."""
    import pyarrow as pa  # only where images or tables are in Parquet: a GPU machine may lack it
    import pyarrow.parquet as pq

    with opened(file) as handle:
        try:
            with pq.ParquetFile(handle, metadata=metadata, pre_buffer=True) as parquet:
                yield parquet
        except (pa.ArrowException, OSError) as error:
            # Arrow has no class of its own for much of what is wrong with a file; faults of the
            # storage have a subclass or a number.
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                raise
            reason = " ".join(str(error).split())
            raise ImageError(f"{file} is no readable Parquet file ({reason})") from error


def parquet_batches(
    parquet: pq.ParquetFile, rows: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The file's rows in order; of its bytes no more than one row group's are in memory."""
    for group in range(parquet.num_row_groups):
        yield from parquet.iter_batches(rows, [group], columns)


@lru_cache(maxsize=64)
def _metadata(file: str, version: str) -> tuple[pq.FileMetaData, list[int]]:
    """A Parquet file's footer, and the number of the row after each row group."""
    with opened_parquet(file) as parquet:
        metadata = parquet.metadata
    rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return metadata, list(accumulate(rows))


def _row_bytes(place: Row) -> bytes:
    if is_local(place.file):
        _check_regular(Path(local_path(place.file)).stat())
    version = _recent_fingerprint(place.file)
    metadata, ends = _metadata(place.file, version)
    group = bisect_right(ends, place.row)
    if group == len(ends):
        raise ImageError("its Parquet file has no such row")
    _check_row_group(place, metadata.row_group(group))
    values = _row_groups.get(
        (place.file, version, place.column, group),
        lambda: _read_row_group(place, metadata, group),
    )
    value = values[place.row - ends[group] + len(values)].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ImageError("its row holds no image")
    check_bytes(len(data))
    return data


def _check_row_group(place: Row, group: pq.RowGroupMetaData) -> None:
    """UnreadableError where the images of a row group are on average over the limit."""
    columns = (group.column(number) for number in range(group.num_columns))
    size = sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema.split(".")[0] == place.column
    )
    check_bytes(size // max(1, group.num_rows))


def _read_row_group(place: Row, metadata: pq.FileMetaData, group: int) -> pa.ChunkedArray:
    with opened_parquet(place.file, metadata) as parquet:
        if place.column not in parquet.schema_arrow.names:
            raise ImageError(f"its Parquet file has no column {json.dumps(place.column)}")
        return parquet.read_row_group(group, columns=[place.column]).column(0)


class RowGroups:
    """The row groups used last, each read once, however many threads ask for it at a time."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[object, Future[pa.ChunkedArray]] = OrderedDict()

    def get(self, key: object, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """The values under `key`, read by this thread or by the one that asked first."""
        with self._lock:
            future = self._held.get(key)
            is_first = future is None
            if future is None:
                future = self._held[key] = Future()
            self._held.move_to_end(key)
        if is_first:
            self._fill(key, future, read)
        return future.result()

    def _fill(
        self, key: object, future: Future[pa.ChunkedArray], read: Callable[[], pa.ChunkedArray]
    ) -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            with self._lock:
                del self._held[key]
            future.set_exception(error)
            return
        with self._lock:
            self._drop_oldest(key)

    def _drop_oldest(self, latest: object) -> None:
        done = {key: future.result().nbytes for key, future in self._held.items() if future.done()}
        over = sum(done.values()) - self.max_bytes
        for key, size in done.items():  # oldest first
            if over <= 0:
                return
            if key != latest:
                del self._held[key]
                over -= size


_row_groups = RowGroups(MAX_ROW_GROUP_BYTES)
