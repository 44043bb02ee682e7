"""Roots: the one folder, on local disk, in memory or on S3, under which a run's results live.

Credentials come from the environment only (for S3 the `AWS_*` variables, a profile or a role).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from diffmining_core.errors import InputError

# fsspec's memory file system looks first and writes then; the lock makes these two one step.
_memory_lock = threading.Lock()


@dataclass(frozen=True)
class Root:
    """A place for results; paths in it are relative, `/`-separated and never leave it.

    url: absolute local path, or fsspec URL. fs: the fsspec file system. path: the root in it.
    Every method raises InputError, in one sentence, where the user has to act: a full disk, a
    read-only place, missing or refused credentials. Other storage faults stay OSErrors.
    """

    url: str
    fs: Any
    path: str

    def path_of(self, rel: str) -> str:
        """The path in `fs` of `rel`; ValueError if `rel` would leave the root."""
        return f"{self.path}/{checked_name(rel)}"

    def url_of(self, rel: str) -> str:
        """The address of `rel`: an absolute local path, or an fsspec URL."""
        return f"{self.url.rstrip('/')}/{checked_name(rel)}"

    def local(self, rel: str) -> Path | None:
        """The path of `rel` on this machine's disk, None for other kinds of root."""
        return Path(self.path_of(rel)) if isinstance(self.fs, LocalFileSystem) else None

    def exists(self, rel: str) -> bool:
        """Whether there is a file or a folder `rel`."""
        with explained(self.url):
            return bool(self.fs.exists(self.path_of(rel)))

    def names(self, rel: str = "") -> list[str]:
        """The names in folder `rel`, sorted; none where there is no such folder. One listing."""
        path = self.path_of(rel) if rel else self.path
        with explained(self.url):
            try:
                entries = self.fs.ls(path, detail=False)
            except FileNotFoundError as error:
                if _s3_code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted(entry.rstrip("/").rpartition("/")[2] for entry in entries)

    def read_bytes(self, rel: str) -> bytes:
        """The bytes of file `rel`; FileNotFoundError if there is none."""
        return self.read_all([rel])[0]

    def read_all(self, rels: Sequence[str]) -> list[bytes]:
        """The bytes of several files, read at once where the storage allows it, one GET each.

        FileNotFoundError with the address of the first that is not there.
        """
        paths = [self.path_of(rel) for rel in rels]
        with explained(self.url):
            answers = self.fs.cat_ranges(paths, 0, None)  # asks for no sizes, unlike cat
            return [self._content(rel, answer) for rel, answer in zip(rels, answers, strict=True)]

    def _content(self, rel: str, answer: bytes | Exception) -> bytes:
        if not isinstance(answer, Exception):
            return bytes(answer)
        if _s3_status(answer) == 416:  # no range of an empty file can be had
            return b""
        if isinstance(answer, FileNotFoundError) and _s3_code(answer) != "NoSuchBucket":
            raise FileNotFoundError(self.url_of(rel)) from answer
        raise answer

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write or replace file `rel`; readers see the old bytes or the new, never half of them."""
        with explained(self.url):
            if path := self.local(rel):
                with _written_aside(path, data) as aside:
                    aside.replace(path)
            else:
                self.fs.pipe_file(self.path_of(rel), data)

    def write_new(self, rel: str, data: bytes) -> None:
        """Write file `rel`, which nobody looks for yet: a crash may leave half of it."""
        with explained(self.url):
            if path := self.local(rel):
                _write_local(path, data)
            else:
                self.fs.pipe_file(self.path_of(rel), data)

    def create_bytes(self, rel: str, data: bytes) -> bool:
        """Write `rel` unless it exists; True for the one writer that made it, False for the others.

        Whole or not at all: a hard link to a finished file on local disk, one conditional PUT on S3
        (so `data` must be under 100 MB: S3 servers ignore the condition on multipart uploads).
        """
        with explained(self.url):
            if path := self.local(rel):
                return _create_local(path, data)
            if isinstance(self.fs, MemoryFileSystem):
                with _memory_lock:
                    return self._created(rel, data)
            return self._created(rel, data)

    def _created(self, rel: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self.path_of(rel), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _s3_status(error) in (409, 412):  # s3fs has no exception of its own for these
                return False
            raise
        return True


def open_root(url: str, create: bool = True) -> Root:
    """The root at a local path or an fsspec URL (`memory://x`, `s3://bucket/prefix`).

    create: make it where it does not exist and check that it can be written; else it must exist.
    InputError where that fails. Buckets are never made.
    """
    if not url:
        raise InputError("the root has no name: give a local folder or an s3:// address")
    try:
        # Another process may write here at any time: listings must not come from a cache.
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"root {url!r} is not understood ({error}): give a local folder or an address such as "
            "s3://bucket/prefix"
        ) from error
    if isinstance(fs, LocalFileSystem):
        root = Root(path, fs, path)
        _check_local(Path(path), create)
        return root
    if not path.strip("/"):
        raise InputError(f"root {url!r} names no place: give an address such as s3://bucket/prefix")
    root = Root(fs.unstrip_protocol(path), fs, path)
    _check_remote(root, create)
    return root


def checked_name(name: str) -> str:
    """`name` itself; ValueError unless it is a relative `/`-separated path that goes only down."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise ValueError(
            f"{name!r} is no name for a stored file: expected parts joined by single slashes, "
            "none of them empty, '.' or '..'"
        )
    return name


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the storage errors that a user can mend into an InputError about the place `url`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if reason := _reason(error):
            raise InputError(f"{url}: {reason}") from error
        if _is_unreachable(error):  # an OSError, so that it counts among what may pass
            raise ConnectionError(f"{url}: the server cannot be reached ({error})") from error
        raise


def _reason(error: Exception) -> str | None:
    """What a user must know and do about a storage error; None if it is not theirs to mend."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return (
            "no space is left to write to; free some, or give another place, and start again: "
            "what is finished is kept"
        )
    if code == errno.EROFS:
        return "it is read-only; give a place that can be written"
    if any(kind.__name__ in _NO_CREDENTIALS for kind in type(error).__mro__):
        return (
            f"there are no usable credentials ({error}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, PermissionError):
        if code is None:  # from a server, not from this machine's disk
            return (
                f"the server refuses access ({_s3_code(error) or error}); check the credentials "
                "(AWS_*) and that they may list, read and write here"
            )
        return f"access is denied ({error}); give a place that you may read and write"
    if _s3_code(error) == "NoSuchBucket":
        return "there is no such bucket; create it, or correct the address"
    return None


# botocore's names; botocore itself is there only where S3 is used.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_UNREACHABLE = {"HTTPClientError", "EndpointConnectionError", "ConnectionError"}


def _is_unreachable(error: Exception) -> bool:
    return not isinstance(error, OSError) and any(
        kind.__name__ in _UNREACHABLE and kind.__module__.startswith("botocore")
        for kind in type(error).__mro__
    )


def _s3_answer(error: BaseException) -> dict[str, Any]:
    """What the server said, found on botocore's error behind the one that s3fs raises."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}


def _s3_code(error: BaseException) -> str | None:
    code = _s3_answer(error).get("Error", {}).get("Code")
    return None if code is None else str(code)


def _s3_status(error: BaseException) -> int | None:
    status = _s3_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None if status is None else int(status)


def _check_local(folder: Path, create: bool) -> None:
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: this folder cannot be made ({error.strerror}); give another place"
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):  # false on a read-only mount even for root
            raise InputError(f"{folder}: this folder cannot be written; give another place")
    elif not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the root of a finished run")


@lru_cache(maxsize=16)  # tasks open the root anew each time; one question to the server is enough
def _check_remote(root: Root, create: bool) -> None:
    try:
        found = root.names()
    except ConnectionError as error:
        raise InputError(f"{error}; check the address, AWS_ENDPOINT_URL and the network") from error
    if not create and not found:
        raise InputError(f"{root.url}: nothing is there; give the root of a finished run")


def _write_local(path: Path, data: bytes) -> None:
    """Write a file and have the disk confirm it: a manifest must not outlive its data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _written_aside(path: Path, data: bytes) -> Iterator[Path]:
    """A finished hidden file with `data` beside `path`, removed afterwards if it is still there."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        _write_local(aside, data)
        yield aside
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it may never have been made, or its folder not
            aside.unlink()


def _create_local(path: Path, data: bytes) -> bool:
    with _written_aside(path, data) as aside:
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise InputError(
                    f"{path.parent}: this file system has no hard links, which recording a result "
                    "needs; give a place on another disk or on S3"
                ) from error
            raise
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
