"""How a dataset lies on disk, as data: a recipe's `[layouts]`, which says what is read from where.

All files and folders are relative to the dataset's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

_NOTHING_ELSE: dict[str, Any] = {"extra": "forbid"}
"""For the reader of recipes: a misspelt field is an error."""


@dataclass(frozen=True)
class FolderLayout:
    """A folder per label, at any depth below which its images are.

    folder: what holds them. skip: folders above the labels'. nested: the label is all folders on
    the way, joined by "_", rather than the first.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _NOTHING_ELSE

    kind: Literal["folders"] = "folders"
    folder: str = ""
    skip: int = 0
    nested: bool = False


@dataclass(frozen=True)
class Table:
    """A table: CSV, TSV, text, JSON (records, or records by name), JSON lines or Parquet.

    file: its name, or a pattern, of whose matches the last is taken; `.gz` is unpacked. columns:
    names of the columns from the left, in place of the file's own. heading: whether the first line
    is no row. delimiter: between values; a tab for .tsv and a comma if unset. key: in a JSON file,
    the column that has the name under which a record stands, or which the records have themselves.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _NOTHING_ELSE

    file: str
    columns: tuple[str, ...] = ()
    heading: bool = True
    delimiter: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class NameTable(Table):
    """A table of names: what `code` says in another table is called `name` here."""

    code: str = "code"
    name: str = "name"


@dataclass(frozen=True)
class BoxTable(Table):
    """A table of boxes, one a row: the image as `image_file` has it, its label, and where it is.

    box: the columns of left, top, width and height, in pixels of the original image. rename: labels
    that are spelt otherwise here. only: leave out images without a box. A box of a label that the
    image has not adds it to the image's labels.
    """

    image: str = "image"
    label: str = "label"
    box: tuple[str, str, str, str] = ("left", "top", "width", "height")
    rename: Mapping[str, str] = field(default_factory=dict)
    only: bool = False


@dataclass(frozen=True)
class TableLayout:
    """A table that names images and says their labels.

    folders: where the images are, tried in turn; patterns. image_file: the image of a row, below
    one of them, with {column} for a value of the row. each: values of more such names; every row
    stands for an image per value. label: a column. round_down: labels are numbers, rounded down to
    a multiple of this, as years to decades. separator: between several labels of one image.
    label_path: labels are paths, of which so many parts are dropped and the others joined by "_".
    labels: only these. detail: a column. listed_in: a list of the images to take (text, one
    `image_file` a line, or a JSON list); excluded_in: of those to leave out, if it is there.
    per_label: at most so many images of a label, chosen by a hash of their names. missing: what to
    do with rows whose image is not there, when many are known to be so.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _NOTHING_ELSE

    table: Table
    image_file: str
    label: str
    kind: Literal["table"] = "table"
    folders: tuple[str, ...] = ("",)
    each: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: NameTable | None = None
    round_down: int | None = None
    separator: str | None = None
    label_path: int | None = None
    labels: tuple[str, ...] = ()
    detail: str | None = None
    listed_in: str | None = None
    excluded_in: str | None = None
    boxes: BoxTable | None = None
    per_label: int | None = None
    missing: Literal["set aside", "leave out"] = "set aside"


@dataclass(frozen=True)
class TarLayout:
    """WebDataset tars whose samples do not say by themselves what is the image, or the label.

    image: what follows a sample's name in that of its image, such as "jpg" or "rgb.png"; unset: the
    only image, or the only one of a single ending. label: the ending of the file with its label;
    unset: the first of these that has one, a caption being none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _NOTHING_ELSE

    kind: Literal["tars"] = "tars"
    image: str | None = None
    label: Literal["cls", "json", "txt"] | None = None


Layout: TypeAlias = FolderLayout | TableLayout | TarLayout
