"""Folders with one sub-folder of images per label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import archive_place, fingerprint
from diffmining_core.images.planning import Listing, plan_rows
from diffmining_core.images.reach import Reach
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard
from diffmining_core.images.sources.layouts import FolderLayout
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

WANTED = "give a folder with one sub-folder of images per label"

UNLABELLED = "in no label's folder"
NO_IMAGE = "no image, by its ending"


class FolderSource:
    """Files at any depth below a label's folder have that label; several folders are one dataset.

    url: how the folders are called together. folders: paths in `fs`. layout: `skip` folders lie
    above the labels', and a `nested` label is all folders on the way, joined by "_". Hidden files
    and folders are skipped; other files that are no labelled images are left out and counted.
    """

    def __init__(
        self,
        url: str,
        fs: Any,
        folders: Sequence[str],
        layout: FolderLayout | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.url = url
        self.fs = fs
        self.folders = folders
        self.layout = layout or FolderLayout()
        self.reach = reach or Reach(url)

    @property
    def digest(self) -> str:
        """Of the listing of all files, made once."""
        return self._listing.digest

    def images(self) -> Iterator[FoundImage]:
        """Every image; InputError if there is no folder, or no image in a sub-folder."""
        return (image for _, image in self._named(Tally()))

    def has_images(self) -> bool:
        """Whether any image lies in a sub-folder; the first is enough."""
        return any(self._is_labelled_image(inner) for inner, _, _ in self._visible())

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """As of the listing whose digest was asked for, if it was."""
        return plan_rows(self._listing, known, shard_rows)

    @cached_property
    def _listing(self) -> Listing:
        left_out = Tally()
        return Listing(self._named(left_out), left_out)

    def _named(self, left_out: Tally) -> Iterator[tuple[str, FoundImage]]:
        """Each image with its path below the place that all folders share."""
        base = os.path.commonpath(self.folders)
        labelled = unlabelled = others = 0
        for inner, path, mark in self._visible():
            if self._is_labelled_image(inner):
                labelled += 1
                yield path.removeprefix(base).lstrip("/"), self._found(inner, path, mark)
            elif is_image_name(inner):
                unlabelled += 1
                left_out.add(UNLABELLED, inner)
            else:
                others += 1
                left_out.add(NO_IMAGE, inner)
        if not labelled:
            raise InputError(self._no_images(unlabelled, others))

    def _found(self, inner: str, path: str, mark: str) -> FoundImage:
        uri = path if isinstance(self.fs, LocalFileSystem) else self.fs.unstrip_protocol(path)
        label = self._label(inner)
        readable = uri.encode(errors="replace").decode()
        if readable != uri:
            label = label.encode(errors="replace").decode()
            return FoundImage.faulty(readable, label, "its name is no UTF-8; rename it")
        if archive_place(uri):
            return FoundImage.faulty(uri, label, "its name reads like a place in an archive")
        if fault := self.reach.fault(uri):
            return FoundImage.faulty(uri, label, fault)
        return FoundImage(uri, label, mark)

    def _label(self, inner: str) -> str:
        folders = inner.split("/")[self.layout.skip : -1]
        return "_".join(folders) if self.layout.nested else folders[0]

    def _is_labelled_image(self, inner: str) -> bool:
        return inner.count("/") > self.layout.skip and is_image_name(inner)

    def _no_images(self, unlabelled: int, others: int) -> str:
        if unlabelled:
            return (
                f"dataset {self.url}: its images lie in no sub-folder, so they have no label; "
                f"{WANTED}"
            )
        return (
            f"dataset {self.url}: its sub-folders hold no images (other files: {others}); {WANTED}"
        )

    def _visible(self) -> Iterator[tuple[str, str, str]]:
        """(path below its folder, path, fingerprint) of every file that is not hidden."""
        with explained(self.url):
            for folder in self.folders:
                for path, mark in files_below(self.fs, folder):
                    inner = path.removeprefix(folder).lstrip("/")
                    if not any(part.startswith(".") for part in inner.split("/")):
                        yield inner, path, mark


def is_image_name(name: str) -> bool:
    """Whether a file's ending is that of an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def files_below(fs: Any, folder: str) -> Iterator[tuple[str, str]]:
    """(path, fingerprint) of every file below a folder, as the listing goes on."""
    if isinstance(fs, LocalFileSystem):
        yield from _local_files(folder)
    elif "s3" in fs.protocol:
        yield from _s3_files(fs, folder)
    else:
        for _, _, infos in fs.walk(folder, detail=True):
            for info in infos.values():
                yield info["name"], fingerprint(info)


def _local_files(folder: str) -> Iterator[tuple[str, str]]:
    """Links are followed, but not in circles."""
    entered: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        # A link back up would otherwise be walked without end.
        if (real := os.path.realpath(here)) in entered:
            folders.clear()
            continue
        entered.add(real)
        for name in files:
            path = f"{here}/{name}"
            try:
                status = Path(path).stat()
            except FileNotFoundError:  # a dangling link
                continue
            yield path, f"{status.st_size}-{status.st_mtime_ns}"


def _raise(error: OSError) -> None:
    raise error


def _s3_files(fs: Any, folder: str) -> Iterator[tuple[str, str]]:
    """Page by page: s3fs itself would hold the listing of a folder whole."""
    bucket, _, prefix = folder.partition("/")
    where = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = fs.call_s3("list_objects_v2", **where)
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):  # a folder's marker
                yield f"{bucket}/{entry['Key']}", fingerprint(entry | {"size": entry["Size"]})
        if not page["IsTruncated"]:
            return
        where["ContinuationToken"] = page["NextContinuationToken"]
