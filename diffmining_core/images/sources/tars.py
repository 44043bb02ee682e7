"""WebDataset tars: the members of one sample lie side by side and share a name up to its first dot.

The label is the text of the sample's `.cls` member, else the `label` of its `.json` (a list of
several, if it has them), else the text of its `.txt`; the image is its first member with an image's
ending.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import member_uri, opened
from diffmining_core.images.planning import Part, PartSource
from diffmining_core.images.shards import FoundImage
from diffmining_core.images.sources.folders import is_image_name
from diffmining_core.images.sources.tables import found_or_faulty, labels_in
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

LABEL_SUFFIXES = (".cls", ".json", ".txt")
"""The first of them that a sample has holds its label."""

MAX_LABEL_BYTES = 2**20

AHEAD = 8 * 2**20
"""Bytes that are fetched at once from a tar that is not on this machine."""

NO_SAMPLE = "in a tar with neither image nor label"


class TarSource(PartSource):
    """Uncompressed tars; only their headers and labels are read to list them."""

    kind = "tars"

    def images_of(self, part: Part, left_out: Tally) -> Iterator[FoundImage]:
        """Every sample, in the file's order."""
        return _samples(part, left_out)


def _samples(part: Part, left_out: Tally) -> Iterator[FoundImage]:
    """The images of a tar, and one with a fault for what lies behind a place it is damaged at."""
    with explained(part.url), opened(part.url, AHEAD) as file:
        scan = _Scan(part, file, left_out)
        for _, members in groupby(scan.members(), key=lambda member: _sample_key(member.name)):
            yield from scan.images_of(list(members))
        if scan.damage:
            uri = member_uri(part.url, scan.position, scan.size, "rest")
            yield FoundImage.faulty(uri, "", scan.damage)


class _Scan:
    """One pass over a tar. damage: why it ended early, at byte `position` of `size`, if it did."""

    def __init__(self, part: Part, file: Any, left_out: Tally) -> None:
        self.part = part
        self.left_out = left_out
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.position = 0
        self.damage: str | None = None
        try:
            # Closing it would do nothing, the file being another's.
            self.tar: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        except tarfile.TarError as error:
            raise InputError(
                f"{part.url} is no readable tar ({error}); it must not be compressed"
            ) from error

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Every file in the tar that lies whole in it, but for hidden ones."""
        count = 0
        while member := self._next():
            if member.offset_data + member.size > self.size:
                break
            count += 1
            if not (member.isdir() or PurePosixPath(member.name).name.startswith(".")):
                yield member
            self.position = self.tar.offset
        if not self._is_ended():
            self.damage = (
                f"the tar is cut short or damaged from byte {self.position} on, after {count} files"
            )

    def _next(self) -> tarfile.TarInfo | None:
        self.tar.members.clear()  # it would keep all
        try:
            member: tarfile.TarInfo | None = self.tar.next()
        except tarfile.TarError:
            return None
        return member

    def _is_ended(self) -> bool:
        """Whether the block of zeros that ends a tar is here; tarfile does not tell."""
        self.file.seek(self.position)
        block: bytes = self.file.read(tarfile.BLOCKSIZE)
        return block == bytes(tarfile.BLOCKSIZE)

    def images_of(self, members: Sequence[tarfile.TarInfo]) -> Iterator[FoundImage]:
        """The image of a sample under its labels; none if there is nothing in it that needs one."""
        image = next((member for member in members if is_image_name(member.name)), None)
        if image is None:
            yield from self._without_image(members)
            return
        stop = image.offset_data + image.size
        uri = member_uri(self.part.url, image.offset_data, stop, image.name)
        if not image.isreg() or image.issparse():
            yield FoundImage.faulty(uri, "", "it is a link or sparse in its tar")
        else:
            yield from found_or_faulty(uri, self._labels(members), self.part.fingerprint)

    def _without_image(self, members: Sequence[tarfile.TarInfo]) -> Iterator[FoundImage]:
        labelled = [member for member in members if _suffix(member) in LABEL_SUFFIXES]
        if not labelled:
            self.left_out.add(NO_SAMPLE, *(m.name for m in members), count=len(members))
            return
        place = labelled[0].offset_data
        uri = member_uri(self.part.url, place, place + labelled[0].size, labelled[0].name)
        yield FoundImage.faulty(uri, "", "its sample has no image")

    def _labels(self, members: Sequence[tarfile.TarInfo]) -> list[str]:
        by_suffix = {_suffix(member): member for member in members if member.isreg()}
        member = next((by_suffix[suffix] for suffix in LABEL_SUFFIXES if suffix in by_suffix), None)
        if member is None or member.size > MAX_LABEL_BYTES:
            return []
        self.file.seek(member.offset_data)
        try:
            text = self.file.read(member.size).decode()
            if _suffix(member) == ".json":
                return labels_in(json.loads(text)["label"])
        except (ValueError, KeyError, TypeError):
            return []
        return labels_in(text)


def _suffix(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).suffix.lower()


def _sample_key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"
