"""Datasets as a recipe describes them: a table that names images, which lie beside it."""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, product
from typing import Any, TypeAlias

import numpy as np
from fsspec.core import has_magic

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import url_of
from diffmining_core.images.planning import HASH_BYTES, Hashes, Listing, plan_rows
from diffmining_core.images.reach import Reach
from diffmining_core.images.shard_image import Box, sound_box
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard
from diffmining_core.images.sources.image_files import ImageFiles, ListedFiles, SoughtFiles
from diffmining_core.images.sources.layouts import BoxTable, NameTable, Table, TableLayout
from diffmining_core.images.sources.rows import Record, listed_names, rows
from diffmining_core.images.sources.text_tables import NO_LABEL, is_decoded, name_fault
from diffmining_core.images.tally import NAMED, Tally
from diffmining_core.store.roots import explained

Boxes: TypeAlias = Mapping[str, Mapping[str, Sequence[Box]]]
"""By image and label."""

Named: TypeAlias = tuple[str, FoundImage]

NOT_THERE = "named in the table, but not there"
UNNAMED = "there, but not named in the table"
UNBOXED = "without a box"
UNLISTED = "not in the list of images to take"
EXCLUDED = "in the list of images to leave out"
OTHER_LABEL = "of other labels"
OVER_LIMIT = "over the number per label"

_COLUMN = re.compile(r"\{([^{}]+)\}")


class DescribedSource:
    """Rows of a table in a folder, read as a layout says.

    folder: the dataset's, a path in `fs`. Which images are there is known from a listing, so that a
    file that comes, changes or goes is seen, and no image that is not there is ever asked for.
    """

    def __init__(
        self, url: str, fs: Any, folder: str, layout: TableLayout, reach: Reach | None = None
    ) -> None:
        self.url = url
        self.fs = fs
        self.folder = folder
        self.layout = layout
        self.reach = reach or Reach(url)
        self.left_out = Tally()

    @property
    def digest(self) -> str:
        """Of all rows and the images they name."""
        return self._listing.digest

    def images(self) -> Iterator[FoundImage]:
        """Every image as the table names it, more than `per_label` too, without listing any."""
        return (image for _, image in self._named(SoughtFiles(self.fs, self._image_folders)))

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """As of the listing whose digest was asked for, if it was."""
        return plan_rows(self._listing, known, shard_rows)

    @cached_property
    def _listing(self) -> Listing:
        self.left_out = Tally()
        with explained(self.url):
            files = ListedFiles(self.fs, self._image_folders)
            named: Iterable[Named] = self._named(files)
            if self.layout.per_label is not None:
                named = self._limited(named, self.layout.per_label)
            return Listing(named, self.left_out)

    def _named(self, files: ImageFiles) -> Iterator[Named]:
        """Each image under each of its labels with the name that the table has for it."""
        layout = self.layout
        names = self._label_names(layout.names) if layout.names else None
        boxes = self._boxes(layout.boxes) if layout.boxes else {}
        listed = self._names_in(layout.listed_in, needed=True)
        excluded = self._names_in(layout.excluded_in, needed=False)

        def left_out(name: str, labels: Sequence[str], fault: str | None) -> str | None:
            if listed is not None and name not in listed:
                return UNLISTED
            if excluded is not None and name in excluded:
                return EXCLUDED
            if layout.labels and fault is None and not set(labels) & set(layout.labels):
                return OTHER_LABEL
            return UNBOXED if layout.boxes and layout.boxes.only and name not in boxes else None

        table = self._file(layout.table)
        listing = files if isinstance(files, ListedFiles) else None
        seen = bytearray()
        for row in rows(table, layout.table, self._columns):
            place = f"{table}#{row.place}"
            if row.fault is not None:
                yield place, FoundImage.faulty(place, "", row.fault)
                continue
            labels, fault = self._labels(row.values, names)
            for values in product(*layout.each.values()):
                record = {**row.values, **dict(zip(layout.each, values, strict=True))}
                name = _filled(layout.image_file, record)
                if wrong := name_fault(name):
                    yield place, FoundImage.faulty(place, "", wrong)
                    continue
                assert name is not None
                reason = left_out(name, labels, fault)
                there = files.find(name) if listing or not reason else None
                if there:
                    seen += _name_hash(name)
                if reason:
                    self.left_out.add(reason, name)
                elif there:
                    own = boxes.get(name, {})
                    yield from self._found(name, there, row.values, labels, fault, own)
                elif layout.missing == "leave out":
                    self.left_out.add(NOT_THERE, name)
                else:
                    address = url_of(self.fs, f"{self._image_folders[0]}/{name}")
                    label = labels[0] if labels else ""
                    yield name, FoundImage.faulty(address, label, "there is no such image")
        if listing:
            self._leave_out_unnamed(listing, _Names.of_hashes(bytes(seen)))

    @property
    def _columns(self) -> list[tuple[str, ...]]:
        """The columns that the table needs, each by the names that it may have."""
        layout = self.layout
        filled = [tuple(match.split("|")) for match in _COLUMN.findall(layout.image_file)]
        others = [(name,) for name in (layout.label, layout.detail) if name]
        return [names for names in (*filled, *others) if not set(names) & layout.each.keys()]

    def _leave_out_unnamed(self, files: ListedFiles, named: _Names) -> None:
        """Count the images that are there without a row."""
        if count := files.count - len(named):
            unnamed = (name for name in files.names() if name not in named)
            self.left_out.add(UNNAMED, *islice(unnamed, NAMED), count=count)

    def _found(
        self,
        name: str,
        there: tuple[str, str],
        row: Record,
        labels: Sequence[str],
        fault: str | None,
        boxes: Mapping[str, Sequence[Box]],
    ) -> Iterator[Named]:
        """An image under each of its labels; under none, with a fault, if it has no label."""
        path, mark = there
        uri = url_of(self.fs, path)
        fault = fault or self.reach.fault(uri)
        if fault is not None:
            yield name, FoundImage.faulty(uri, "", fault)
            return
        detail = _text(row.get(self.layout.detail)) if self.layout.detail else ""
        wanted = set(self.layout.labels)
        for label in dict.fromkeys([*labels, *boxes]):
            if not wanted or label in wanted:
                own = tuple(boxes.get(label, ()))
                yield name, FoundImage(uri, label, mark, detail=detail or None, boxes=own)

    def _limited(self, named: Iterable[Named], limit: int) -> Iterator[Named]:
        """At most `limit` images of each label: those whose names have the least hashes."""
        heaps: dict[str, list[tuple[int, str]]] = defaultdict(list)
        chosen: dict[tuple[str, str], FoundImage] = {}
        for name, image in named:
            heap, key = heaps[image.label], (image.label, name)
            if image.fault is not None:
                yield name, image
                continue
            if key in chosen:  # a repeated row takes no place
                continue
            chosen[key] = image
            heapq.heappush(heap, (-int.from_bytes(_name_hash(name)), name))
            if len(heap) > limit:
                _, last = heapq.heappop(heap)
                del chosen[image.label, last]
                self.left_out.add(OVER_LIMIT, last)
        yield from ((name, image) for (_, name), image in chosen.items())

    def _labels(
        self, row: Record, names: Mapping[str, str] | None
    ) -> tuple[Sequence[str], str | None]:
        """The labels of a row, and why they cannot be told if they cannot."""
        layout = self.layout
        text = _text(row.get(layout.label))
        parts = text.split(layout.separator) if layout.separator else [text]
        labels = [label for part in parts if (label := part.strip())]
        if not is_decoded(text):
            return (), "its label is no text"
        if not labels:
            return (), NO_LABEL
        if names is not None:
            if unknown := [label for label in labels if label not in names]:
                return (
                    (),
                    f"its label {unknown[0][:80]!r} has no name in {_file_name(layout.names)}",
                )
            labels = [names[label] for label in labels]
        if (skipped := layout.label_path) is not None:
            labels = ["_".join(label.strip("/").split("/")[skipped:]) for label in labels]
        if layout.round_down is not None:
            try:
                numbers = [math.floor(float(label) / layout.round_down) for label in labels]
            except (ValueError, OverflowError):
                return (), f"its {layout.label} {text[:80]!r} is no number"
            labels = [str(number * layout.round_down) for number in numbers]
        return labels, None

    def _label_names(self, table: NameTable) -> Mapping[str, str]:
        """What labels are called, by what stands for them."""
        file = self._file(table)
        return {
            _text(values.get(table.code)): _text(values.get(table.name))
            for _, values in _sound_rows(file, table, (table.code, table.name))
        }

    def _boxes(self, table: BoxTable) -> Boxes:
        """All boxes: experts draw few enough to hold them."""
        boxes: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
        file = self._file(table)
        for place, values in _sound_rows(file, table, (table.image, table.label, *table.box)):
            image, label = _text(values.get(table.image)), _text(values.get(table.label))
            try:
                box = sound_box(values[column] for column in table.box)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise InputError(
                    f"{file}#{place}: a box should have the numbers {', '.join(table.box)}, the "
                    "last two over 0, but has "
                    f"{', '.join(str(values.get(column)) for column in table.box)}; correct the "
                    "row, or remove it"
                ) from error
            boxes[image][table.rename.get(label, label)].append(box)
        return boxes

    def _names_in(self, file: str | None, needed: bool) -> _Names | None:
        if file is None:
            return None
        try:
            place = self._matching(file)
        except InputError:
            if needed:
                raise
            return None
        return _Names(listed_names(place))

    def _file(self, table: Table) -> str:
        """The address of a table's file."""
        return self._matching(table.file)

    def _matching(self, pattern: str) -> str:
        path = _joined(self.folder, pattern)
        with explained(self.url):
            named = sorted(self.fs.glob(path)) if has_magic(pattern) else [path]
            found = [own for own in named if self.fs.isfile(own)]
            if not found:
                raise InputError(
                    f"dataset {self.url}: there is no file {pattern or repr(pattern)}, which its "
                    "recipe reads; put it there, or give the folder that it is in"
                )
        address = url_of(self.fs, found[-1])
        self.reach.check(address)
        return address

    @cached_property
    def _image_folders(self) -> Sequence[str]:
        """The folders with images that are there; the first that could be if none is."""
        folders = []
        for pattern in self.layout.folders:
            path = _joined(self.folder, pattern)
            with explained(self.url):
                folders += sorted(self.fs.glob(path)) if has_magic(pattern) else [path]
        there = [folder for folder in folders if self.fs.isdir(folder)]
        return there or [_joined(self.folder, self.layout.folders[0])]


class _Names:
    """A set of names, by 16 bytes each."""

    def __init__(self, names: Iterable[str]) -> None:
        self._hashes = _unique_hashes(b"".join(map(_name_hash, names)))

    @classmethod
    def of_hashes(cls, hashes: bytes) -> _Names:
        """The names with these hashes, one after the other."""
        names = cls(())
        names._hashes = _unique_hashes(hashes)
        return names

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        wanted = np.frombuffer(_name_hash(name), f"S{HASH_BYTES}")
        place = int(np.searchsorted(self._hashes, wanted)[0])
        return place < len(self._hashes) and bool(self._hashes[place] == wanted[0])


def _unique_hashes(hashes: bytes) -> Hashes:
    return np.unique(np.frombuffer(hashes, f"S{HASH_BYTES}"))


def _name_hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=HASH_BYTES).digest()


def _sound_rows(file: str, table: Table, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The place and the values of each row of a small table; InputError if one has a fault."""
    for place, values, fault in rows(file, table, [(column,) for column in columns]):
        if fault is not None:
            raise InputError(f"{file}#{place}: {fault}; correct the row, or remove it")
        yield place, values


def _filled(pattern: str, row: Record) -> str | None:
    """The pattern with the row's values for its columns; None if a value is missing.

    Of columns joined by "|" the first that the row has; the name is below its folder whatever the
    row says.
    """
    missing = False

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        text = next((text for name in match[1].split("|") if (text := _text(row.get(name)))), "")
        missing = missing or not text
        return text

    name = _COLUMN.sub(value, pattern).lstrip("/")
    return None if missing or ".." in name.split("/") else name


def _text(value: object) -> str:
    """A value of a table as text, "" for nothing; whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _file_name(table: Table | None) -> str:
    return table.file if table else ""


def _joined(folder: str, inner: str) -> str:
    return f"{folder}/{inner}" if inner else folder
