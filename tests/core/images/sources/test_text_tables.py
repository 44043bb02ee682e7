"""Text tables: no row takes others with it, and what is soundly quoted is read."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmining_core.errors import InputError
from diffmining_core.images.sources.text_tables import (
    LONGEST,
    STRAY_QUOTE,
    UNDECODED,
    TextTable,
    opened_text,
)


def read(text: str, delimiter: str = ",", key: int = 0) -> list[tuple[int, list[str] | str]]:
    """Line and fields, or fault, of each row."""
    table = TextTable("t.csv", io.StringIO(text, newline=""), delimiter)
    return [(line, fault or list(fields)) for line, fields, fault in table.rows(key)]


def test_tsv_has_no_quotes() -> None:
    text = 'uri\ttitle\na.jpg\t"Heroes\nb.jpg\t"Low"\n'
    assert read(text, "\t") == [(2, ["a.jpg", '"Heroes']), (3, ["b.jpg", '"Low"'])]


@pytest.mark.parametrize(
    "caption", ["one", "one\ntwo", "one\r\n\r\ntwo", 'a "b",\nc', "a\nb, c, d"]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_quoted_fields_may_have_line_breaks_wherever_they_are(caption: str, place: int) -> None:
    rows = [[f"{name}.jpg", "hat"] for name in "abc"]
    for row in rows:
        row.insert(place, caption)
    heading = ["uri", "label"]
    heading.insert(place, "caption")
    text = io.StringIO()
    csv.writer(text).writerows([heading, *rows])
    assert [fields for _, fields in read(text.getvalue(), key=heading.index("uri"))] == rows


@pytest.mark.parametrize("end", ["", 'd.jpg,"hat\n', 'd.jpg,hat"\n', '"\n'])
def test_a_stray_quote_sets_aside_its_own_line_only(end: str) -> None:
    found = dict(read(f'uri,label\na.jpg,hat\nb.jpg,"hat\nc.jpg,hat\n{end}'))
    assert found[2] == ["a.jpg", "hat"]
    assert found[3] == STRAY_QUOTE
    assert found[4] == ["c.jpg", "hat"]


@pytest.mark.parametrize("names", [("01", "02", "03"), ("x/1", "x/2", "x/3"), ("a b.jpg",) * 3])
def test_rows_within_quotes_are_known_by_the_names_of_other_rows(names: tuple[str, ...]) -> None:
    one, two, three = names
    found = read(f'uri,label\n{one},hat\n{two},"hat\n{three},hat"\n')
    assert found == [(2, [one, "hat"]), (3, STRAY_QUOTE), (4, [three, 'hat"'])]


def test_quotes_within_a_field_are_its_own() -> None:
    assert read('uri,label\na.jpg,5" hat\n') == [(2, ["a.jpg", '5" hat'])]


def test_blanks_after_commas_and_before_quotes_are_nothing() -> None:
    assert read('uri, label\na.jpg, "hat, old"\n') == [(2, ["a.jpg", "hat, old"])]


def test_empty_lines_are_no_rows_and_extra_fields_only_where_they_are_empty() -> None:
    text = "\n\nuri,label,,\n\n  \na.jpg,hat\nb.jpg,hat,,,,\nc.jpg,hat,,,x\nd.jpg\n"
    fields = "its row has {} fields, the first line 4"
    assert read(text) == [
        (6, ["a.jpg", "hat"]),
        (7, ["b.jpg", "hat", "", "", "", ""]),
        (8, fields.format(5)),
        (9, fields.format(1)),
    ]


def test_without_heading_the_first_row_says_how_many_fields_there_are() -> None:
    text = io.StringIO("a.jpg hat x\nb.jpg hat\nc.jpg hat x y\n")
    rows = list(TextTable("t.txt", text, " ", ("file", "label"), heading=False).rows())
    wanted = [None, None, "its row has 4 fields, the first line 3"]
    assert [row.fault for row in rows] == wanted


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_byte_order_marks_say_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\N{ZERO WIDTH NO-BREAK SPACE}" if encoding.endswith("e") and "16" in encoding else ""
    (tmp_path / "t.csv").write_bytes(f"{mark}uri,label\nkö.jpg,köln\n".encode(encoding))
    with opened_text(str(tmp_path / "t.csv")) as text:
        table = TextTable("t.csv", text, ",")
        assert table.names == ["uri", "label"]
        assert [row.fields for row in table.rows()] == [["kö.jpg", "köln"]]


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes('uri,label\na.jpg,hat\nb.jpg,k\xf6ln\n"c.jpg",\xf6\n'.encode("latin-1"))
    with opened_text(str(file)) as text:
        rows = list(TextTable("t.csv", text, ",").rows())
    assert [row.fault for row in rows] == [None, UNDECODED, UNDECODED]
    file.write_bytes("uri,label\na.jpg,hat\n".encode("utf-16-le"))
    with opened_text(str(file)) as text, pytest.raises(InputError, match="save the table as UTF-8"):
        TextTable("t.csv", text, ",")
    file.write_bytes("uri,label\na.jpg,hat\n".encode("utf-16") + b"\x00\xd8a")
    with opened_text(str(file)) as text, pytest.raises(InputError, match="what follows line 2"):
        list(TextTable("t.csv", text, ",").rows())


@pytest.mark.parametrize(
    ("heading", "says"),
    [
        ("", "t.csv is empty"),
        ("\n \n", "t.csv is empty"),
        ('uri,"label\na,b\n', "line 1 should be"),
    ],
)
def test_a_table_without_heading_is_refused(heading: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(heading)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"uri,label\n" + b"".join(b"%d.jpg,hat\n" % i for i in range(1000)))
    for data in (whole[:-20], whole[:200] + b"\0\0\0\0" + whole[204:], b"none"):
        (tmp_path / "t.csv.gz").write_bytes(data)
        with (
            pytest.raises(InputError, match=r"t\.csv\.gz is no readable table"),
            opened_text(str(tmp_path / "t.csv.gz")) as text,
        ):
            list(TextTable("t.csv.gz", text, ",").rows())


def test_a_line_without_end_is_no_table() -> None:
    with pytest.raises(InputError, match="line 2 has over 1048576 characters"):
        read("uri,label\n" + "x" * LONGEST)


def test_captions_of_several_lines_in_a_table_of_many_blocks(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "caption", "label"])
        rows = [[f"{i}.jpg", "A caption,\n" * (i % 40), "hat"] for i in range(20_000)]
        writer.writerows(rows)
    assert (tmp_path / "t.csv").stat().st_size > 4 * 2**20
    tracemalloc.start()
    with opened_text(str(tmp_path / "t.csv")) as text:
        found = TextTable("t.csv", text, ",").rows()
        assert all(row.fields == wanted for row, wanted in zip(found, rows, strict=True))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


FIELD = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(FIELD, FIELD), max_size=8), st.booleans())
def test_whatever_is_written_as_csv_is_read_again(
    captions: list[tuple[str, str]], quote_all: bool
) -> None:
    rows = [[f"{i}.jpg", first, second] for i, (first, second) in enumerate(captions)]
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL) if quote_all else csv.writer(text)
    writer.writerows([["uri", "first", "second"], *rows])
    found = [fields for _, fields in read(text.getvalue())]
    assert [[field.lstrip(" ") for field in row] for row in found] == [
        [field.lstrip(" ") for field in row] for row in rows
    ]
