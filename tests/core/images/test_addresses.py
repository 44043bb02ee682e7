from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Barrier

import fsspec
import pyarrow as pa
import pytest
from written_images import image_table, own_name, parquet_of, put, tar_of

from diffmining_core.errors import ImageError, InputError, UnreadableError
from diffmining_core.images.addresses import (
    Member,
    Row,
    RowGroups,
    archive_place,
    current_fingerprint,
    fingerprint,
    member_uri,
    read_bytes,
    row_uri,
)
from diffmining_core.images.reach import MAX_IMAGE_MB


def test_a_file_is_read(url: str) -> None:
    put(url, "a & b#c?.png", b"1234")
    assert read_bytes(f"{url}/a & b#c?.png") == b"1234"
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{url}/none.png")


def test_a_member_of_a_tar_is_read(url: str) -> None:
    tar = tar_of({"a/1.png": b"first", "2.png": b"", "3.png": b"third"})
    put(url, "x #1.tar", tar)
    start = tar.index(b"third")
    assert read_bytes(member_uri(f"{url}/x #1.tar", start, start + 5, "3.png")) == b"third"
    assert read_bytes(member_uri(f"{url}/x #1.tar", 512, 512, "2.png")) == b""
    with pytest.raises(FileNotFoundError):
        read_bytes(member_uri(f"{url}/none.tar", 0, 5, "3.png"))


@pytest.mark.parametrize(("start", "end"), [(4, 12), (8, 12), (20, 25)])
def test_a_tar_that_has_become_shorter_is_said(url: str, start: int, end: int) -> None:
    put(url, "x.tar", b"12345678")
    with pytest.raises(ImageError, match="is shorter than when it was listed"):
        read_bytes(member_uri(f"{url}/x.tar", start, end, "a.png"))


@pytest.mark.parametrize("rows_per_group", [1, 3, 100])
def test_rows_of_a_parquet_file_are_read(url: str, rows_per_group: int) -> None:
    images = {f"{i}.png": f"image {i}".encode() for i in range(7)}
    place = f"{url}/x #{rows_per_group}.parquet"
    put(url, place.rpartition("/")[2], parquet_of(image_table(images, "abcdefg"), rows_per_group))
    for row in (0, 3, 6, 1):
        assert read_bytes(row_uri(place, row, "image", "a.png")) == f"image {row}".encode()
    with pytest.raises(ImageError, match="its Parquet file has no such row"):
        read_bytes(row_uri(place, 7, "image", "a.png"))
    with pytest.raises(ImageError, match='has no column "none"'):
        read_bytes(row_uri(place, 0, "none", "a.png"))


def test_plain_bytes_and_rows_without_bytes(tmp_path: Path) -> None:
    place = str(tmp_path / "x.parquet")
    table = pa.table({"a/b &c": [b"1", None], "s": [{"bytes": b"2"}, {"bytes": None}]})
    put(str(tmp_path), "x.parquet", parquet_of(table))
    assert read_bytes(row_uri(place, 0, "a/b &c", "n")) == b"1"
    assert read_bytes(row_uri(place, 0, "s", "n")) == b"2"
    for column in ("a/b &c", "s"):
        with pytest.raises(ImageError, match="its row holds no image"):
            read_bytes(row_uri(place, 1, column, "n"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    data = parquet_of(image_table({"a.png": bytes(range(256)) * 40}, ["x"]))
    put(str(tmp_path), "y.parquet", data[:-100])
    with pytest.raises(ImageError, match=r"y\.parquet is no readable Parquet file"):
        read_bytes(row_uri(str(tmp_path / "y.parquet"), 0, "image", "a.png"))


def test_a_folder_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(UnreadableError, match="it is a folder, not a file"):
        read_bytes(row_uri(str(tmp_path / "x.parquet"), 0, "image", "a.png"))


def test_a_parquet_file_that_was_replaced_is_read_anew(url: str) -> None:
    place = f"{url}/x.parquet"
    put(url, "x.parquet", parquet_of(image_table({"a.png": b"old"}, ["x"])))
    before = current_fingerprint(place)
    assert read_bytes(row_uri(place, 0, "image", "a.png")) == b"old"
    put(url, "x.parquet", parquet_of(image_table({"a.png": b"newer"}, ["x"])))
    assert current_fingerprint(place) != before
    assert read_bytes(row_uri(place, 0, "image", "a.png")) == b"newer"


@pytest.mark.parametrize("name", ["photo 1.JPG", "köln.png", "a/b/c.png", "a&b#c.png", "..", "é?"])
def test_every_address_ends_with_the_images_own_name(name: str) -> None:
    for uri in (member_uri("/x.tar", 1, 2, name), row_uri("/x.parquet", 1, "image", name)):
        shown = PurePosixPath(uri).name
        assert shown == own_name(uri)
        assert shown.removeprefix("photo 1") in (
            ".JPG",
            "köln.png",
            "c.png",
            "a_b_c.png",
            "..",
            "é_",
        )


def test_addresses_are_told_apart() -> None:
    assert archive_place(member_uri("s3://b/x.tar", 5, 9, "a.png")) == Member("s3://b/x.tar", 5, 9)
    for column in ("image", "a/b", "a&b=c", "ü"):
        uri = row_uri("/a b#row=1/x.parquet", 12, column, "a.png")
        assert archive_place(uri) == Row("/a b#row=1/x.parquet", 12, column)
    inside = member_uri("/x.tar#bytes=1-2/y.tar", 5, 9, "a.png")
    assert archive_place(inside) == Member("/x.tar#bytes=1-2/y.tar", 5, 9)
    for path in ("/a/x.tar", "/a/x.tar#1.png", "/a/#bytes=1-2/a.png", "/x.parquet#row=1/a.png"):
        assert archive_place(path) is None


def test_a_fingerprint_has_no_spaces() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/fingerprint/a.png", b"12")
    mark = fingerprint(fs.info("/fingerprint/a.png"))
    assert mark.startswith("2-")
    assert mark == fingerprint(fs.ls("/fingerprint", detail=True)[0])
    assert fingerprint({"size": 1, "mtime": "1 May 2026"}) == "1-1_May_2026"
    assert fingerprint({"size": 3, "ETag": '"abc"'}) == "3-abc"
    assert fingerprint({"size": 3}) == "3"


class Reads:
    """A reader of row groups that counts how often it is called."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def of(self, key: str) -> Callable[[], pa.ChunkedArray]:
        def read() -> pa.ChunkedArray:
            self.keys.append(key)
            return pa.chunked_array([[key * 10]])

        return read


def test_a_row_group_is_read_once_by_many_threads() -> None:
    groups, reads, barrier = RowGroups(100), Reads(), Barrier(8)

    def ask(_: int) -> str:
        barrier.wait()
        return str(groups.get("key", reads.of("x"))[0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == ["x" * 10] * 8
    assert reads.keys == ["x"]


def test_row_groups_beyond_the_memory_are_forgotten_oldest_first() -> None:
    reads = Reads()
    groups = RowGroups(2 * reads.of("x")().nbytes)
    reads.keys.clear()
    for key in ("a", "b", "a", "c", "a", "c", "b"):
        groups.get(key, reads.of(key))
    assert reads.keys == ["a", "b", "c", "b"]


def test_the_latest_row_group_is_held_whatever_its_size() -> None:
    groups, reads = RowGroups(1), Reads()
    for key in ("a", "a", "b", "b", "a"):
        groups.get(key, reads.of(key))
    assert reads.keys == ["a", "b", "a"]


def test_a_row_group_that_could_not_be_read_is_tried_again() -> None:
    groups = RowGroups(100)

    def fail() -> pa.ChunkedArray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        groups.get("a", fail)
    assert str(groups.get("a", Reads().of("x"))[0]) == "x" * 10


def test_what_a_user_can_mend_is_said(bucket: str) -> None:
    with pytest.raises(InputError, match="there is no such bucket"):
        read_bytes(f"s3://not-{bucket}/a.png")


def test_an_image_over_the_limit_is_not_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_IMAGE_MB, "1")
    large = bytes(10**6 + 1)
    put(url, "a.png", large)
    put(url, "a.tar", tar_of({"a.png": large}))
    put(url, "a.parquet", parquet_of(image_table({"a.png": large, "b.png": b"b"}, ["x", "x"]), 1))
    for place in (
        f"{url}/a.png",
        member_uri(f"{url}/a.tar", 512, 512 + len(large), "a.png"),
        row_uri(f"{url}/a.parquet", 0, "image", "a.png"),
    ):
        with pytest.raises(UnreadableError, match="over 1 MB; --max-image-mb allows larger"):
            read_bytes(place)
    assert read_bytes(row_uri(f"{url}/a.parquet", 1, "image", "b.png")) == b"b"
    monkeypatch.setenv(MAX_IMAGE_MB, "2")
    assert read_bytes(f"{url}/a.png") == large


def test_an_empty_file_is_read(url: str) -> None:
    put(url, "a.png", b"")
    assert read_bytes(f"{url}/a.png") == b""
