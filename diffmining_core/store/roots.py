"""Roots: the one folder, on local disk, in memory or on S3, under which a run's results live.

Credentials come from the environment only (for S3 the `AWS_*` variables, a profile or a role): an
address that holds some is refused.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from diffmining_core.errors import InputError
from diffmining_core.proxies import never_proxy_loopback
from diffmining_core.secrets import REMEDY, cleaned, secrets_kept, without_secrets
from diffmining_core.store.media_types import media_type

# fsspec's memory file system looks first and writes then; the lock makes these two one step.
_memory_lock = threading.Lock()

BLOCK = 16 * 2**20
"""Bytes of a large file held at a time."""

_S3 = ("s3://", "s3a://")

PROTOCOLS = {None, "file", "local", "memory", "s3", "s3a"}
"""Protocols that can keep results: they create a file only if there is none, so that exactly one of
several runs publishes a unit. Others cannot do that, or have not been tried."""

S3_TRIES = 8
"""Of a request to S3. Where one in twenty fails, one in 25 billion is given up; a server that is
gone is given up after 10 seconds, with reads after a minute and a half."""

REMOVE_TRIES = 20

S3_TIMEOUT = 30
"""Seconds without a byte from S3 until a request counts as failed."""


class NoConditionalCreateError(InputError):
    """A server cannot create a file only where there is none, so that no unit can be published."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url}: the server does not know how to create a file only where there is none (it "
            "answers 501 to If-None-Match), which publishing a result needs; give a place on "
            "another server"
        )


@dataclass(frozen=True)
class Entry:
    """One file or folder as a listing has it.

    bytes: 0 for a folder. modified: seconds since 1970 by the storage's own clock, 0 if unknown.
    """

    name: str
    bytes: int
    modified: float
    is_folder: bool


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

    @property
    def name(self) -> str:
        """What others may see of a root: the folder's name on a local disk, else the address."""
        return Path(self.path).name if isinstance(self.fs, LocalFileSystem) else self.url

    def holds(self, rel: str) -> bool:
        """Whether `rel` is inside the root once all links are followed, and they end somewhere."""
        if (path := self.local(rel)) is None:
            return True
        real = Path(os.path.realpath(path))
        return real.is_relative_to(os.path.realpath(self.path)) and not real.is_symlink()

    def exists(self, rel: str) -> bool:
        """Whether there is a file or a folder `rel`."""
        with explained(self.url):
            return bool(self.fs.exists(self.path_of(rel)))

    def names(self, rel: str = "") -> list[str]:
        """The names in folder `rel`, sorted; none where there is no such folder. One listing."""
        return [entry.name for entry in self.entries(rel)]

    def entries(self, rel: str = "") -> list[Entry]:
        """What lies in folder `rel`, sorted by name; nothing where there is none. One listing."""
        path = self.path_of(rel) if rel else self.path
        with explained(self.url):
            try:
                infos = self.fs.ls(path, detail=True)
            except FileNotFoundError as error:
                if s3_code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted((_entry(info) for info in infos), key=lambda entry: entry.name)

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
        if isinstance(answer, FileNotFoundError) and s3_code(answer) != "NoSuchBucket":
            raise FileNotFoundError(self.url_of(rel)) from answer
        raise answer

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write or replace file `rel`; readers see the old bytes or the new, never half of them."""
        with explained(self.url):
            if path := self.local(rel):
                with _written_aside(path, data) as aside:
                    aside.replace(path)
            else:
                self.fs.pipe_file(self.path_of(rel), data, **self._said_of(rel))

    def write_new(self, rel: str, data: bytes) -> None:
        """Write file `rel`, which nobody looks for yet: a crash may leave half of it."""
        with explained(self.url):
            if path := self.local(rel):
                _write_local(path, data)
            else:
                self.fs.pipe_file(self.path_of(rel), data, **self._said_of(rel))

    def _said_of(self, rel: str) -> dict[str, str]:
        """What S3 is to say with the file: a browser else downloads a page and shows nothing."""
        kind = media_type(rel) if self.url.startswith(_S3) else None
        return {"ContentType": kind} if kind else {}

    def remove(self, rel: str) -> None:
        """Remove file or folder `rel` with all in it; nothing happens where there is none."""
        with explained(self.url), suppress(FileNotFoundError):
            if path := self.local(rel):
                _remove_local(path)
            else:
                self.fs.rm(self.path_of(rel), recursive=True)

    def write_file(self, rel: str, source: Path) -> None:
        """Write the local file `source` as `rel`, which nobody looks for yet, whatever its size."""
        with explained(self.url):
            if path := self.local(rel):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, path)
                _sync(path)
            elif isinstance(self.fs, MemoryFileSystem):
                self.fs.pipe_file(self.path_of(rel), source.read_bytes())
            else:
                self._upload(rel, source)

    def _upload(self, rel: str, source: Path) -> None:
        path, size = self.path_of(rel), source.stat().st_size
        try:
            self.fs.put_file(str(source), path, **self._said_of(rel))
        except FileNotFoundError as error:
            # The answer to the request that ends an upload in parts was lost, and the server does
            # not know the upload any more when it is asked again.
            if s3_code(error) != "NoSuchUpload" or self.fs.size(path) != size:
                raise

    def blocks(self, rel: str) -> Iterator[bytes]:
        """The bytes of file `rel`, a block at a time, never fewer than the storage says it has.

        FileNotFoundError if there is no such file.
        """
        path = self.path_of(rel)
        with explained(self.url):
            size = self.fs.size(path)
            for start in range(0, size, BLOCK):
                end = min(start + BLOCK, size)
                block = self.fs.cat_file(path, start=start, end=end)
                if len(block) != end - start:
                    raise ConnectionError(
                        f"{self.url_of(rel)}: bytes {start} to {end} were asked for, {len(block)} "
                        "bytes came; start again"
                    )
                yield block

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
            # 412: it exists. 409, still after several tries: others are writing it.
            if _s3_status(error) in (409, 412):
                return False
            if _s3_status(error) == 501:
                raise NoConditionalCreateError(self.url) from error
            raise
        return True


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address and the path in it; ValueError or ImportError if none.

    Another process may write there at any time, so that no listing comes from a cache. S3 requests
    are tried again where that may help; what fsspec's own settings say (`FSSPEC_S3` in the
    environment) goes before ours.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if not url.startswith(_S3):
        fs, path = fsspec.url_to_fs(url, **options)
        return fs, path
    never_proxy_loopback()
    asked = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    # All tries are s3fs's: with botocore's inside each of them they would multiply.
    ours = {"read_timeout": S3_TIMEOUT, "retries": {"total_max_attempts": 1, "mode": "standard"}}
    fs, path = fsspec.url_to_fs(url, **options, config_kwargs={**ours, **asked})
    fs.retries = S3_TRIES
    import s3fs.core  # only where S3 is used

    s3fs.core.set_custom_error_handler(_may_pass)
    return fs, path


def open_root(url: str, create: bool = True) -> Root:
    """The root at a local path or an address (`memory://x`, `s3://bucket/prefix`).

    create: make it where it does not exist and check that it can be written; else it must exist.
    InputError where that fails. Buckets are never made.
    """
    if not url:
        raise InputError("the root has no name: give a local folder or an s3:// address")
    check_protocol(url)
    refuse_secrets("root", url)
    try:
        fs, path = filesystem(url)
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


def check_protocol(url: str) -> None:
    """InputError if results cannot be kept at such an address; nothing is opened."""
    protocol, _ = split_protocol(url)
    if protocol not in PROTOCOLS:
        raise InputError(
            f"{protocol}:// cannot keep results, which need files that one of several runs alone "
            "can create; give a local folder, or an address such as s3://bucket/prefix"
        )


def refuse_secrets(what: str, address: str) -> None:
    """InputError if an address that would be stored holds a password, a token or a signature."""
    if (clean := cleaned(address)) != address:
        raise InputError(f"{what} {clean}: {REMEDY}")


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
    except (InputError, ConnectionError):  # explained already, where one is inside another
        raise
    except Exception as error:
        if reason := _reason(error):
            raise InputError(f"{url}: {reason}") from error
        if isinstance(error, OSError) and _may_pass(error.__cause__):
            sentence = f"{url}: the server cannot serve now ({s3_code(error)})"
            raise ConnectionError(without_secrets(sentence)) from error
        if _is_unreachable(error):  # an OSError, so that it counts among what may pass
            sentence = f"{url}: the server cannot be reached ({error})"
            raise ConnectionError(without_secrets(sentence)) from error
        with secrets_kept():
            raise


def _reason(error: Exception) -> str | None:
    """What a user must know and do about a storage error; None if it is not theirs to mend."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or _s3_status(error) == 507:
        return _FULL
    if _s3_status(error) == 501:
        asked = getattr(error.__cause__, "operation_name", "a request")
        return f"the server does not know {asked} (it answers 501); give a place on another server"
    if code == errno.EROFS:
        return "it is read-only; give a place that can be written"
    if _is_a(error, _NO_CREDENTIALS, "botocore"):
        return (
            f"there are no usable credentials ({error}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if _is_a(error, {"ParamValidationError"}, "botocore"):
        return "S3 has no such names for buckets or files; correct the address"
    if sentence := _S3_REFUSALS.get(s3_code(error) or ""):
        return sentence
    if isinstance(error, PermissionError):
        return _denied(error)
    return None


def _denied(error: PermissionError) -> str:
    if error.errno is not None:  # by this machine's disk, not by a server
        return f"access is denied ({error}); give a place that you may read and write"
    if getattr(error.__cause__, "operation_name", None) in _S3_WRITES:
        return (
            f"the server lets these credentials read but not write here ({s3_code(error)}); "
            f"have it allowed, or give another place, {_GO_ON}"
        )
    return (
        f"the server refuses access ({s3_code(error) or error}); check the credentials (AWS_*) "
        f"and that they may list, read and write here, {_GO_ON}"
    )


def _entry(info: dict[str, Any]) -> Entry:
    # Local disk says mtime, S3 LastModified, memory created; folders on S3 say nothing.
    modified = next((info[n] for n in ("mtime", "LastModified", "created") if info.get(n)), 0.0)
    is_folder = info["type"] == "directory"
    return Entry(
        name=info["name"].rstrip("/").rpartition("/")[2],
        bytes=0 if is_folder else info["size"],
        modified=modified.timestamp() if isinstance(modified, datetime) else float(modified),
        is_folder=is_folder,
    )


_GO_ON = "and start again: what is finished is kept"
_FULL = (
    "no space is left to write to; free some, or give another place, and start again: what is "
    "finished is kept"
)
_EXPIRED = f"the credentials have expired; renew them (AWS_*) {_GO_ON}"
_UNKNOWN = (
    "the server does not accept these credentials; correct AWS_ACCESS_KEY_ID, "
    f"AWS_SECRET_ACCESS_KEY and, if it needs one, AWS_SESSION_TOKEN {_GO_ON}"
)
_ELSEWHERE = f"the bucket is in another region; set AWS_DEFAULT_REGION to it {_GO_ON}"
_TOO_LARGE = "the server refuses a file as too large; give a place that takes larger ones"

_S3_REFUSALS = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _UNKNOWN,
    "InvalidClientTokenId": _UNKNOWN,
    "InvalidSecurity": _UNKNOWN,
    "InvalidToken": _UNKNOWN,
    "SignatureDoesNotMatch": _UNKNOWN,
    "RequestTimeTooSkewed": (
        f"this machine's clock differs from the server's by too much; set it right {_GO_ON}"
    ),
    "QuotaExceeded": _FULL,
    "ServiceQuotaExceededException": _FULL,
    "XMinioStorageFull": _FULL,
    "EntityTooLarge": _TOO_LARGE,
    "MaxMessageLengthExceeded": _TOO_LARGE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "PermanentRedirect": _ELSEWHERE,
    "NoSuchBucket": "there is no such bucket; create it, or correct the address",
}
"""What S3's error codes mean; the server's own words may tell more than should be seen."""

_S3_WRITES = {
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "DeleteObject",
    "DeleteObjects",
}

# Classes by name: botocore and aiohttp are there only where S3 is used.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_UNREACHABLE = {
    "ClientPayloadError",  # an answer that ends too early
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",  # no S3 server's answer
}
_PASSING_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}


def _is_a(error: BaseException, names: set[str], *packages: str) -> bool:
    return any(
        kind.__name__ in names and kind.__module__.startswith(packages)
        for kind in type(error).__mro__
    )


def _is_unreachable(error: BaseException) -> bool:
    return _is_a(error, _UNREACHABLE, "botocore", "aiohttp")


def _may_pass(error: BaseException | None) -> bool:
    """Whether a request that failed with this error of botocore's or aiohttp's may yet succeed."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return error is not None and _is_unreachable(error)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    passing = status == 429 or (status >= 500 and status not in (501, 507))
    return passing or answer.get("Error", {}).get("Code") in _PASSING_CODES


def _s3_answer(error: BaseException) -> dict[str, Any]:
    """What the server said, found on botocore's error behind the one that s3fs raises."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}


def s3_code(error: BaseException) -> str | None:
    """The code of S3's refusal, None where there is none."""
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


def _remove_local(path: Path) -> None:
    """Remove a file or folder which others may be removing, or writing to, at the same time."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for _ in range(REMOVE_TRIES):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:  # of something in it, or of the folder itself
            if not path.exists():
                return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
    shutil.rmtree(path)


@contextmanager
def _written_aside(path: Path, data: bytes) -> Iterator[Path]:
    """A finished hidden file with `data` beside `path`, removed afterwards if it is still there."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        _write_local(aside, data)
        yield aside
        _sync(path.parent)
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
