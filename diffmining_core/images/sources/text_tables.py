"""Text tables, CSV and TSV: read line by line, so that a bad row never takes others with it.

In CSV a field may be quoted, and a quoted field may have line breaks. In TSV nothing is quoted: a
quote is a character like any other.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import NamedTuple

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import AHEAD, opened

LONGEST = 2**20
"""Characters that a row may have: more are not held in memory."""

STRAY_QUOTE = "one of its fields begins with a quote and does not end with one"
UNDECODED = "its line is not in UTF-8"
NO_LABEL = "it has no label"

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ENDING = re.compile(r"\.[A-Za-z]\w{1,4}")
_LETTERS, _DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"\d+")


class TextRow(NamedTuple):
    """A row and the number of its first line; fault: why its fields cannot be read."""

    line: int
    fields: Sequence[str]
    fault: str | None = None


def table_suffix(file: str) -> str:
    """The suffix of a table's name in lower case, without `.gz`."""
    return PurePosixPath(file.lower().removesuffix(".gz")).suffix


@contextmanager
def opened_text(file: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file at a path or URL, unpacked if it ends in `.gz`.

    UTF-8 unless it begins with a byte-order mark. Bytes that are no UTF-8 become surrogates.
    """
    with opened(file, AHEAD) as handle:
        try:
            data = gzip.GzipFile(fileobj=handle) if file.lower().endswith(".gz") else handle
            start = data.read(4)
            data.seek(0)
            marks = (name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark))
            with io.TextIOWrapper(
                data, encoding=next(marks, "utf-8"), errors="surrogateescape", newline=""
            ) as text:
                yield text
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(
                f"{file} is no readable table ({error}); pack it again with gzip, or unpack it"
            ) from error


def is_decoded(text: str) -> bool:
    """Whether all bytes of a text from `opened_text` could be read."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def name_fault(name: str | None) -> str | None:
    """Why the name that a row gives, None if it gives none, is that of no file; None if it is."""
    if name is None:
        return "its row names no file"
    if _CONTROL.search(name) or not is_decoded(name):
        return "its file name has control characters"
    return None


class TextTable:
    """The rows of a text table, in order, to be gone through once.

    names: of the columns, from the left, in place of the heading's; heading: whether the first line
    is no row. InputError if there is no heading.
    """

    def __init__(
        self,
        file: str,
        text: io.TextIOBase,
        delimiter: str,
        names: Sequence[str] = (),
        heading: bool = True,
    ) -> None:
        self.file = file
        self.delimiter = delimiter
        self._lines = _Lines(file, text)
        self._is_quoted = delimiter != "\t"
        self._width = 0  # until the first line is read
        if heading:
            fields = self._heading()
            self._width = max(len(names), len(fields))
            names = names or fields
        self.names = names

    def rows(self, key: int = 0) -> Iterator[TextRow]:
        """The rows; empty lines are none.

        key: the number of the column that names an image. By its value a line within quotes is
        recognised as a row of its own, which a stray quote would swallow.
        """
        named = len(_without_empty_end(self.names))
        model: Sequence[str] = ()
        for line in self._lines:
            number = self._lines.number
            fields, fault = self._fields(line, key, model)
            if fault is None and not fields:
                continue
            if fault is None:
                self._width = self._width or max(named, len(fields))
                if len(fields) < named or any(fields[self._width :]):
                    fault = f"its row has {len(fields)} fields, the first line {self._width}"
                else:
                    model = fields
            yield TextRow(number, fields, fault)

    def _heading(self) -> list[str]:
        for line in self._lines:
            number = self._lines.number
            fields, fault = self._fields(line)
            if fault is None and any("\0" in field for field in fields):
                fault = "it has NUL characters; save the table as UTF-8"
            if fault is not None:
                raise InputError(f"{self.file}: line {number} should be its heading, but {fault}")
            if fields:
                return [field.strip() for field in fields]
        raise InputError(
            f"{self.file} is empty; give a table with a line of headings and a row for each image"
        )

    def _fields(
        self, line: str, key: int | None = None, model: Sequence[str] = ()
    ) -> tuple[Sequence[str], str | None]:
        """The fields of the row that begins with this line (an empty line has none); its fault."""
        if self._is_quoted and '"' in line:
            return self._quoted_fields(line, key, model)
        if not is_decoded(line):
            return (), UNDECODED
        line = line.rstrip("\r\n")
        return (line.split(self.delimiter) if line.strip(" ") else ()), None

    def _quoted_fields(
        self, line: str, key: int | None, model: Sequence[str]
    ) -> tuple[Sequence[str], str | None]:
        """The same of a line with quotes, whose row may have more lines.

        If it is no sound row, it is this line alone, and the next one begins another.
        """
        taken = [line]

        def record() -> Iterator[str]:
            yield line
            length = len(line)
            for more in self._lines:
                taken.append(more)
                length += len(more)
                if length > LONGEST or (key is not None and self._is_row(more, key, model)):
                    return
                yield more

        reader = csv.reader(
            record(),
            delimiter=self.delimiter,
            skipinitialspace=self.delimiter != " ",
            strict=True,
        )
        try:
            fields = next(reader)
        except csv.Error:
            self._lines.put_back(taken[1:])
            return (), STRAY_QUOTE
        return (fields, None) if all(map(is_decoded, taken)) else ((), UNDECODED)

    def _is_row(self, line: str, key: int, model: Sequence[str]) -> bool:
        """Whether a line within quotes is a row of its own: it names an image as other rows do.

        model: a sound row above, if there is one. A row's own last line, in which its quotes end
        before the name, is none.
        """
        fields = line.rstrip("\r\n").split(self.delimiter)
        if len(fields) != self._width or any(_ends_quote(field) for field in fields[: key + 1]):
            return False
        name = _bare(fields[key])
        if not model:
            return bool(_ENDING.fullmatch(PurePosixPath(name).suffix)) and not _has_blank(name)
        return _shape(name) == _shape(_bare(model[key]))


class _Lines:
    """The lines of a text, which may be put back; number: that of the latest."""

    def __init__(self, file: str, text: io.TextIOBase) -> None:
        self.number = 0
        self._file = file
        self._text = text
        self._again: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def put_back(self, lines: Sequence[str]) -> None:
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)

    def _read(self) -> str:
        try:
            line = self._text.readline(LONGEST)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._file}: what follows line {self.number} is not in the encoding of its "
                f"byte-order mark ({error.reason}); save the table as UTF-8"
            ) from error
        if len(line) == LONGEST:
            raise InputError(
                f"{self._file}: line {self.number + 1} has over {LONGEST} characters; it is no "
                "table of images"
            )
        return line


def _without_empty_end(names: Sequence[str]) -> Sequence[str]:
    """The names of the columns up to the last that has one: exports end lines with delimiters."""
    last = max((place for place, name in enumerate(names) if name), default=-1)
    return names[: last + 1]


def _bare(field: str) -> str:
    return field.strip().strip('"').strip()


def _ends_quote(field: str) -> bool:
    """Whether a quote ends in a field in which none begins."""
    field = field.strip()
    return field.endswith('"') and not field.startswith('"')


def _has_blank(name: str) -> bool:
    return any(map(str.isspace, name))


def _shape(name: str) -> tuple[str, bool]:
    """The pattern shared by image names of one table.

    That is whether they end in an extension and have blanks, and without an extension how letters
    and digits alternate.
    """
    if _ENDING.fullmatch(PurePosixPath(name).suffix):
        return ".", _has_blank(name)
    return _DIGITS.sub("0", _LETTERS.sub("a", name)), _has_blank(name)
