"""Folders with one sub-folder of images per label.

Each file is an image under a label, set aside by name, or left out and counted by its reason.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import archive_place, fingerprint, not_a_file, url_of
from diffmining_core.images.planning import Listing, plan_rows
from diffmining_core.images.reach import Reach
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard
from diffmining_core.images.sources.layouts import FolderLayout
from diffmining_core.images.sources.names import ending, is_image_name, may_be_image, rubbish
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

WANTED = "give a folder with one sub-folder of images per label"

UNLABELLED = "in no label's folder"
NO_IMAGE = "no image, by its ending"
AGAIN = "a link to a folder that is listed already"


class FolderSource:
    """Files at any depth below a label's folder have that label; several folders are one dataset.

    url: how the folders are called together. folders: paths in `fs`. layout: `skip` folders lie
    above the labels', and a `nested` label is all folders on the way, joined by "_". Files of which
    the ending tells nothing are opened like images; what cannot be opened is set aside. left_out:
    what lies beside the folders.
    """

    def __init__(
        self,
        url: str,
        fs: Any,
        folders: Sequence[str],
        layout: FolderLayout | None = None,
        reach: Reach | None = None,
        left_out: Tally | None = None,
    ) -> None:
        self.url = url
        self.fs = fs
        self.folders = folders
        self.layout = layout or FolderLayout()
        self.reach = reach or Reach(url)
        self.left_out = left_out or Tally()

    @property
    def digest(self) -> str:
        """Of the listing of all files, made once."""
        return self._listing.digest

    def images(self) -> Iterator[FoundImage]:
        """Every image; InputError if there is no folder, or no image in a sub-folder."""
        return (image for _, image in self._named(Tally()))

    def has_images(self) -> bool:
        """Whether any file with an image's ending lies in a sub-folder; the first is enough."""
        return any(
            is_image_name(inner) and self._left_out(inner, file) is None
            for inner, file in self._files()
        )

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """As of the listing whose digest was asked for, if it was."""
        return plan_rows(self._listing, known, shard_rows)

    @cached_property
    def _listing(self) -> Listing:
        left_out = Tally()
        left_out.update(self.left_out.as_json())
        return Listing(self._named(left_out), left_out)

    def _named(self, left_out: Tally) -> Iterator[tuple[str, FoundImage]]:
        """Each image with its path below the place that all folders share."""
        labelled = unlabelled = others = 0
        for inner, file in self._files():
            reason = self._left_out(inner, file)
            if reason is None:
                labelled += 1
                yield self._below_all(file.path), self._found(inner, file)
            else:
                is_loose = reason == UNLABELLED and is_image_name(inner)
                unlabelled, others = unlabelled + is_loose, others + (not is_loose)
                left_out.add(reason, _readable(inner))
        if not labelled:
            raise InputError(self._no_images(unlabelled, others))

    def _left_out(self, inner: str, file: ListedFile) -> str | None:
        """Why a file is no part of the dataset; None if it is an image under a label."""
        if reason := rubbish(self._below_all(file.path)):  # also of a folder that a pattern found
            return reason
        if file.is_no_file:
            return AGAIN
        if not may_be_image(inner):
            return f"{NO_IMAGE} {ending(inner)}"
        return UNLABELLED if inner.count("/") <= self.layout.skip else None

    def _below_all(self, path: str) -> str:
        """A path below the place that all folders share."""
        return path.removeprefix(self._base).lstrip("/")

    @cached_property
    def _base(self) -> str:
        return os.path.commonpath(self.folders)

    def _found(self, inner: str, file: ListedFile) -> FoundImage:
        path = file.path
        uri = url_of(self.fs, path)
        label, readable = _readable(self._label(inner)), _readable(uri)
        if readable != uri:
            return FoundImage.faulty(readable, label, "its name is no UTF-8; rename it")
        if archive_place(uri):
            return FoundImage.faulty(uri, label, "its name reads like a place in an archive")
        if file.fault is not None:
            return FoundImage.faulty(uri, label, file.fault)
        if fault := self.reach.fault(uri):
            return FoundImage.faulty(uri, label, fault)
        return FoundImage(uri, label, file.mark)

    def _label(self, inner: str) -> str:
        folders = inner.split("/")[self.layout.skip : -1]
        return "_".join(folders) if self.layout.nested else folders[0]

    def _no_images(self, unlabelled: int, others: int) -> str:
        if unlabelled:
            return (
                f"dataset {self.url}: its images lie in no sub-folder, so they have no label; "
                f"{WANTED}"
            )
        return (
            f"dataset {self.url}: its sub-folders hold no images (other files: {others}); {WANTED}"
        )

    def _files(self) -> Iterator[tuple[str, ListedFile]]:
        """Every file, with its path below its folder."""
        with explained(self.url):
            for folder in self.folders:
                for file in files_below(self.fs, folder):
                    yield file.path.removeprefix(folder).lstrip("/"), file


def holds_images(fs: Any, folder: str) -> bool:
    """Whether a file with an image's ending lies below a folder; the first is enough."""
    files = (file.path.removeprefix(folder).lstrip("/") for file in files_below(fs, folder))
    return any(is_image_name(inner) and rubbish(inner) is None for inner in files)


class ListedFile(NamedTuple):
    """An entry of a listing.

    mark: its fingerprint. fault: why it must not be opened. is_no_file: it is a folder that is not
    entered: rubbish without read permission, or a link to a folder already listed.
    """

    path: str
    mark: str
    fault: str | None = None
    is_no_file: bool = False


def files_below(fs: Any, folder: str) -> Iterator[ListedFile]:
    """Every file below a folder, as the listing goes on."""
    if isinstance(fs, LocalFileSystem):
        yield from _local_files(folder)
    elif "s3" in fs.protocol:
        yield from _s3_files(fs, folder)
    else:
        for _, _, infos in fs.walk(folder, detail=True):
            for info in infos.values():
                yield ListedFile(info["name"], fingerprint(info))


def _local_files(folder: str) -> Iterator[ListedFile]:
    """Links are followed, but into no folder twice, and so not in circles."""
    entered: set[str] = set()
    closed: list[OSError] = []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
        yield from _rubbish_among(closed, folder)
        if (real := os.path.realpath(here)) in entered:
            folders.clear()
            yield ListedFile(here, "", is_no_file=True)
            continue
        entered.add(real)
        folders.sort(key=lambda name: (Path(here, name).is_symlink(), name))
        for name in files:
            yield _local_file(f"{here}/{name}")
    yield from _rubbish_among(closed, folder)


def _rubbish_among(closed: list[OSError], folder: str) -> Iterator[ListedFile]:
    """The unreadable folders below this one; raises the error of one that may hold images."""
    while closed:
        error = closed.pop()
        path = str(error.filename)
        if rubbish(path.removeprefix(folder).lstrip("/")) is None:
            raise error
        yield ListedFile(path, "", is_no_file=True)


def _local_file(path: str) -> ListedFile:
    try:
        status = Path(path).stat()
    except OSError as error:
        return ListedFile(path, "", _no_status(path, error))
    if fault := not_a_file(status):
        return ListedFile(path, "", fault)
    return ListedFile(path, f"{status.st_size}-{status.st_mtime_ns}")


def _no_status(path: str, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link to itself"
    if isinstance(error, FileNotFoundError):
        is_link = Path(path).is_symlink()
        return "it is a link to nothing" if is_link else "it has gone since it was listed"
    return f"it cannot be read: {error.strerror}"


def _readable(name: str) -> str:
    """The name with a mark for what is no UTF-8."""
    return name.encode(errors="replace").decode()


def _s3_files(fs: Any, folder: str) -> Iterator[ListedFile]:
    """Page by page: s3fs itself would hold the listing of a folder whole."""
    bucket, _, prefix = folder.partition("/")
    where = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = fs.call_s3("list_objects_v2", **where)
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):  # a folder's marker
                mark = fingerprint(entry | {"size": entry["Size"]})
                yield ListedFile(f"{bucket}/{entry['Key']}", mark)
        if not page["IsTruncated"]:
            return
        where["ContinuationToken"] = page["NextContinuationToken"]
