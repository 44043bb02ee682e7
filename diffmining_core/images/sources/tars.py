"""WebDataset tars: the members of one sample lie side by side and share a name up to its first dot.

The label is the text of the sample's `.cls` member, else the `label` of its `.json` (a list of
several, if it has them), else the text of its `.txt`, unless the `.json` says that this is a
caption. The image is the only one, or the only one of a single ending (`KEY.jpg`); the others are
left out and counted. A layout may name both.
"""

from __future__ import annotations

import codecs
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import AHEAD, member_uri, opened
from diffmining_core.images.planning import Part, PartSource
from diffmining_core.images.shards import FoundImage
from diffmining_core.images.sources.layouts import TarLayout
from diffmining_core.images.sources.names import ending, is_image_name, may_be_image, rubbish
from diffmining_core.images.sources.tables import labels_in
from diffmining_core.images.sources.text_tables import NO_LABEL
from diffmining_core.images.tally import Tally
from diffmining_core.store.roots import explained

LABEL_ENDINGS = (".cls", ".json", ".txt")
"""The first of them in which a sample has a label holds it."""

MAX_LABEL_BYTES = 2**20

MAX_PADDING = tarfile.RECORDSIZE + tarfile.BLOCKSIZE
"""Zeros behind the last file: two blocks, filled up to a whole record of 10 KB."""

NO_SAMPLE = "in a tar with neither image nor label"
ANOTHER = "another image of its sample"
CAPTION = (
    "its .txt is a caption, as its .json says, and no label (a recipe with a layout of the kind "
    '"tars" and label = "txt" takes it for one)'
)


class TarSource(PartSource):
    """Uncompressed tars; only their headers and labels are read to list them."""

    kind = "tars"

    def __init__(
        self,
        url: str,
        parts: Sequence[Part],
        layout: TarLayout | None = None,
        left_out: Tally | None = None,
    ) -> None:
        self.layout = layout or TarLayout()
        named = [self.layout.image or "", self.layout.label or ""]
        reading = "/".join(named) if any(named) else ""
        super().__init__(url, [replace(part, reading=reading) for part in parts], left_out)

    def images_of(self, part: Part, left_out: Tally) -> Iterator[FoundImage]:
        """Every sample, in the file's order."""
        with explained(part.url), opened(part.url, AHEAD) as file:
            scan = _Scan(part, file, left_out, self.layout)
            for _, members in groupby(scan.members(), key=lambda member: _key(member.name)):
                for sample in _samples(list(members)):
                    yield from scan.images_of(sample)
            if scan.damage:  # one faulty image stands for the rest
                uri = member_uri(part.url, scan.position, scan.size, "rest")
                yield FoundImage.faulty(uri, "", scan.damage)


def _samples(members: list[tarfile.TarInfo]) -> Iterator[list[tarfile.TarInfo]]:
    """The samples of members that share a name up to its first dot: one, by the convention.

    But where no member is called KEY.ending, and an ending comes twice, the dots belong to the
    samples' names (IMG_2024.05.01.jpg), which then end at the last.
    """
    endings = [ending(member.name) for member in members]
    if any("." not in _field(member.name) for member in members) or len({*endings}) == len(endings):
        yield members
        return
    for _, sample in groupby(members, key=lambda member: member.name.rpartition(".")[0]):
        yield list(sample)


class _Scan:
    """One pass over a tar. damage: why it ended early, at byte `position` of `size`, if it did."""

    def __init__(self, part: Part, file: Any, left_out: Tally, layout: TarLayout) -> None:
        self.part = part
        self.layout = layout
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
        """Every complete file in the tar, except rubbish."""
        count = 0
        while member := self._next():
            if member.offset_data + member.size > self.size:
                break
            count += 1
            if not member.isdir():
                if reason := rubbish(member.name.removeprefix("./")):
                    self.left_out.add(reason, member.name)
                else:
                    yield member
            self.position = self.tar.offset
        self.damage = self._damage(count)

    def _next(self) -> tarfile.TarInfo | None:
        self.tar.members.clear()  # it would keep all
        try:
            member: tarfile.TarInfo | None = self.tar.next()
        except tarfile.TarError:
            return None
        return member

    def _damage(self, count: int) -> str | None:
        """Why more than these files may have been in the tar; tarfile does not tell."""
        self.file.seek(self.position)
        rest: bytes = self.file.read(MAX_PADDING + 1)
        if not rest.startswith(bytes(tarfile.BLOCKSIZE)):
            return (
                f"the tar is cut short or damaged from byte {self.position} on, after {count} files"
            )
        if len(rest) > MAX_PADDING or rest.strip(b"\0"):
            return (
                f"the tar ends at byte {self.position}, after {count} files, but goes on to byte "
                f"{self.size}: it was not fetched whole, or several were joined"
            )
        return None

    def images_of(self, members: Sequence[tarfile.TarInfo]) -> Iterator[FoundImage]:
        """The image of a sample under its labels; none if there is nothing in it that needs one."""
        images = [member for member in members if is_image_name(member.name)]
        labelled = [member for member in members if ending(member.name) in LABEL_ENDINGS]
        if not images and labelled:
            images = [member for member in members if may_be_image(member.name)]
        if not images and not labelled:
            self.left_out.add(NO_SAMPLE, *(m.name for m in members), count=len(members))
        elif not images:
            yield self._faulty(labelled[0], "its sample has no image")
        elif (image := self._own(images)) is None:
            yield from (self._faulty(member, self._choice(images)) for member in images)
        else:
            others = [member.name for member in images if member is not image]
            if others:
                self.left_out.add(ANOTHER, *others, count=len(others))
            yield from self._labelled(image, labelled)

    def _own(self, images: Sequence[tarfile.TarInfo]) -> tarfile.TarInfo | None:
        """The one of these images that is the sample's; None if that is not clear."""
        if self.layout.image is not None:
            named = [m for m in images if _field(m.name) == self.layout.image.lstrip(".").lower()]
        else:
            plain = [member for member in images if "." not in _field(member.name)]
            named = plain if len(images) > 1 else list(images)
        return named[0] if len(named) == 1 else None

    def _choice(self, images: Sequence[tarfile.TarInfo]) -> str:
        fields = ", ".join(sorted({_field(member.name) for member in images})[:8])
        if self.layout.image is not None:
            return f"its sample has no one image called {self.layout.image}, but {fields}"
        return (
            f"its sample has several images ({fields}): name one in a recipe with a layout of the "
            'kind "tars", such as image = "jpg"'
        )

    def _labelled(
        self, image: tarfile.TarInfo, labelled: Sequence[tarfile.TarInfo]
    ) -> Iterator[FoundImage]:
        if not image.isreg() or image.issparse():
            yield self._faulty(image, "it is a link or sparse in its tar")
            return
        labels, fault = self._labels(labelled)
        if not labels:
            yield self._faulty(image, fault)
        for label in labels:
            yield FoundImage(self._uri(image), label, self.part.fingerprint)

    def _labels(self, labelled: Sequence[tarfile.TarInfo]) -> tuple[list[str], str]:
        """The labels of a sample, and why it has none if it has none."""
        # Of two files of one ending that of the shorter name is the sample's.
        by_ending = {ending(m.name): m for m in sorted(labelled, key=lambda m: -len(m.name))}
        texts = {own: self._text(by_ending[own]) for own in LABEL_ENDINGS if own in by_ending}
        record = _record(texts.get(".json", ""))
        found = {own: labels_in(text) for own, text in texts.items()}
        found[".json"] = labels_in(record.get("label"))
        if self.layout.label is not None:
            own = f".{self.layout.label}"
            return found.get(own, []), f"it has no label in a {own}"
        is_caption = "caption" in record and bool(found.pop(".txt", None))
        labels = next((found[own] for own in LABEL_ENDINGS if found.get(own)), [])
        return labels, CAPTION if is_caption else NO_LABEL

    def _text(self, member: tarfile.TarInfo) -> str:
        """The text of a small file without a byte-order mark; "" if it cannot be read."""
        if not member.isreg() or member.size > MAX_LABEL_BYTES:
            return ""
        self.file.seek(member.offset_data)
        data: bytes = self.file.read(member.size)
        is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            return data.decode("utf-16" if is_wide else "utf-8-sig")
        except UnicodeDecodeError:
            return ""

    def _faulty(self, member: tarfile.TarInfo, fault: str) -> FoundImage:
        return FoundImage.faulty(self._uri(member), "", fault)

    def _uri(self, member: tarfile.TarInfo) -> str:
        start = member.offset_data
        return member_uri(self.part.url, start, start + member.size, member.name)


def _record(text: str) -> Mapping[str, Any]:
    """The record in a sample's JSON, empty if it is not an object."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _field(name: str) -> str:
    """A member's name after its first dot, in lower case: the webdataset field."""
    return name.rpartition("/")[2].partition(".")[2].lower()
