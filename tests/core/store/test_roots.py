from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.roots import Root, open_root

THREADS = 12


def test_what_is_written_is_read(root: Root) -> None:
    root.write_bytes("page/index.html", b"old and longer")
    root.write_bytes("page/index.html", b"new")
    root.write_new("page/a b#ü?.bin", bytes(range(256)))
    root.write_new("empty", b"")
    assert root.read_bytes("page/index.html") == b"new"
    assert root.read_bytes("page/a b#ü?.bin") == bytes(range(256))
    assert root.read_bytes("empty") == b""
    assert root.read_all(["empty", "page/index.html", "page/a b#ü?.bin"]) == [
        b"",
        b"new",
        bytes(range(256)),
    ]
    assert root.read_all([]) == []
    assert root.exists("page")
    assert root.exists("empty")
    assert not root.exists("pag")
    with pytest.raises(FileNotFoundError):
        root.read_bytes("nothing")


def test_names_are_listed_fresh_each_time(root: Root, url: str) -> None:
    assert root.names("manifests/index") == []
    root.write_new("manifests/index/b", b"1")
    assert root.names("manifests/index") == ["b"]
    open_root(url).write_new("manifests/index/a", b"1")
    root.write_new("manifests/other/c", b"1")
    assert root.names("manifests/index") == ["a", "b"]
    assert root.names("manifests") == ["index", "other"]
    assert root.names() == ["manifests"]


def test_addresses_are_absolute_and_open_anywhere(root: Root) -> None:
    root.write_new("a/b", b"data")
    address = root.url_of("a/b")
    assert address.startswith(("/", "memory://", "s3://"))
    with fsspec.open(address, "rb") as file:
        assert file.read() == b"data"
    assert open_root(root.url) == root
    local = root.local("a/b")
    assert (local is None) == ("://" in root.url)
    assert local is None or local.read_bytes() == b"data"


def test_the_first_to_create_a_file_wins(root: Root) -> None:
    assert root.create_bytes("manifests/a.json", b"first")
    assert not root.create_bytes("manifests/a.json", b"second")
    assert root.read_bytes("manifests/a.json") == b"first"
    assert root.names("manifests") == ["a.json"]  # nothing half made stays


def test_of_twelve_threads_one_creates_each_file(root: Root) -> None:
    names = [f"race/{i}" for i in range(8)]
    start = threading.Barrier(THREADS)

    def race(thread: int) -> list[bool]:
        won = []
        for name in names:
            start.wait()
            won.append(root.create_bytes(name, b"%d" % thread))
        return won

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(race, range(THREADS)))
    for place, name in enumerate(names):
        winners = [thread for thread in range(THREADS) if results[thread][place]]
        assert len(winners) == 1
        assert root.read_bytes(name) == b"%d" % winners[0]


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/", ".", "a\\b", "a\0b"]
)
def test_no_name_leads_out_of_the_root(root: Root, name: str) -> None:
    for use in (root.path_of, root.url_of, root.read_bytes, root.exists):
        with pytest.raises(ValueError, match="is no name"):
            use(name)
    with pytest.raises(ValueError, match="is no name"):
        root.write_bytes(name, b"")


def test_a_relative_folder_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = open_root("demo")
    assert root.url == str(tmp_path / "demo")
    assert (tmp_path / "demo").is_dir()
    assert open_root((tmp_path / "demo").as_uri()) == root


def test_reading_makes_nothing(url: str) -> None:
    with pytest.raises(InputError, match="give the root of a finished run"):
        open_root(url, create=False)
    open_root(url).write_new("a", b"1")
    assert open_root(url, create=False).read_bytes("a") == b"1"


def _below_a_file(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "root")


def _a_file(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file")


def _read_only(tmp_path: Path) -> str:
    (tmp_path / "closed").mkdir(mode=0o500)
    return str(tmp_path / "closed")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (_a_file, "cannot be made"),
        (_below_a_file, "cannot be made"),
        pytest.param(
            _read_only,
            "cannot be written",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere"),
        ),
        pytest.param(
            lambda _: "/proc/diffmining",  # which refuses new folders to root, too
            "cannot be made",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc"),
        ),
        pytest.param(
            lambda _: "/proc/self",
            "cannot be written",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc"),
        ),
        (lambda _: "nosuch://a/b", "is not understood"),
        (lambda _: "", "has no name"),
        (lambda _: "memory://", "names no place"),
    ],
)
def test_a_place_that_cannot_be_a_root_is_named(
    tmp_path: Path, place: Callable[[Path], str], says: str
) -> None:
    url = place(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        open_root(url)
    assert url in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(InputError, match="no space is left to write to; free some"):
        root.write_new("full", b"data")


def test_a_missing_bucket_is_named(bucket: str) -> None:
    for create in (True, False):
        with pytest.raises(InputError, match="s3://nosuchbucket/x: there is no such bucket"):
            open_root("s3://nosuchbucket/x", create=create)


@pytest.fixture
def fresh_s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An S3 client made anew from an environment that the test may change."""
    s3 = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(s3, "_cache", {})
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    return monkeypatch


def test_missing_credentials_are_named(fresh_s3: pytest.MonkeyPatch) -> None:
    fresh_s3.delenv("AWS_ACCESS_KEY_ID")
    fresh_s3.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"no usable credentials.*set AWS_ACCESS_KEY_ID"):
        open_root(f"s3://results/{uuid4().hex}")


def test_a_server_that_is_not_there_is_named(fresh_s3: pytest.MonkeyPatch) -> None:
    fresh_s3.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    fresh_s3.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match=r"cannot be reached.*check the address"):
        open_root(f"s3://results/{uuid4().hex}")
