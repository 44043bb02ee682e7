from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from written_images import photo, put

from diffmining_core.errors import InputError
from diffmining_core.images.shards import FoundImage, index_shard
from diffmining_core.images.sources import check_source, open_source


def list_folder(url: str) -> list[FoundImage]:
    return [image for shard in open_source(url).plan([], 1000).new for image in shard.images]


def inner_of(url: str, found: FoundImage) -> str:
    return found.uri.rpartition(url.removeprefix("memory://").removeprefix("s3://") + "/")[2]


def test_each_sub_folder_is_a_label(url: str) -> None:
    images = {"rome/a.png", "rome/b.JPG", "rome/deep/er/c.webp", "köln am rhein/a.tiff"}
    others = {"rome/notes.txt", "truth.parquet", "top.png"}
    hidden = {"rome/.a.png", ".git/a.png", "rome/.thumbs/a.png"}
    for inner in images | others | hidden:
        put(url, inner, photo())
    found = list_folder(url)
    assert {inner_of(url, image) for image in found} == images
    assert {image.label for image in found} == {"rome", "köln am rhein"}
    assert all(image.label == inner_of(url, image).split("/")[0] for image in found)
    for image in found:
        with fsspec.open(image.uri, "rb") as file:
            assert file.read() == photo()


def left_out(url: str) -> dict[str, list[str]]:
    return {
        reason: found["names"]
        for reason, found in open_source(url).plan([], 1000).left_out.as_json().items()
    }


def test_other_files_are_counted_by_their_reason(url: str) -> None:
    for inner in ("rome/a.png", "rome/notes.txt", "truth.parquet", "top.png", "rome/.b.png"):
        put(url, inner, photo())
    assert left_out(url) == {
        "no image, by its ending .txt": ["rome/notes.txt"],
        "no image, by its ending .parquet": ["truth.parquet"],
        "in no label's folder": ["top.png"],
        "hidden": ["rome/.b.png"],
    }


def test_what_programs_leave_is_left_out(url: str) -> None:
    rubbish = {
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
        "rome/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
        "__MACOSX/rome/._a.png": "__MACOSX",
        "rome/._a.png": "._*",
        "rome/.ipynb_checkpoints/a-checkpoint.png": ".ipynb_checkpoints",
        "rome/Thumbs.db": "Thumbs.db",
        "rome/desktop.ini": "desktop.ini",
        "rome/.DS_Store": ".DS_Store",
        "#recycle/rome/b.png": "#recycle",
        "$RECYCLE.BIN/b/b.png": "$RECYCLE.BIN",
        "System Volume Information/b/b.png": "System Volume Information",
        "lost+found/b/b.png": "lost+found",
        ".@__thumb/b/b.png": ".@__thumb",
        "@Recycle/b/b.png": "@Recycle",
    }
    for folder in ("photos", "split/train"):
        for inner in ("rome/a.png", *rubbish):
            put(url, f"{folder}/{inner}", photo())
    put(url, "split/@eaDir/rome/a.png", photo())
    put(url, "split/test/rome/a.png", photo())
    for place, more in ((f"{url}/photos", []), (f"{url}/split/*", ["@eaDir"])):
        assert {image.label for image in list_folder(place)} == {"rome"}
        counts = open_source(place).plan([], 1000).left_out.counts
        assert counts == Counter(f"left by a program: {n}" for n in [*rubbish.values(), *more])


def test_a_file_of_an_unknown_ending_or_none_is_opened(url: str) -> None:
    endings = ("", ".jfif", ".jpe", ".JPG", ".avif", ".jp2", ".2024", ".HEIC")
    for ending in endings:
        put(url, f"rome/a{ending}", photo())
    put(url, "rome/b", b"no image")
    table = index_shard(list_folder(url))
    faults = {row["uri"].rpartition("/")[2]: row["set_aside"] for row in table.to_pylist()}
    assert faults == {
        **{f"a{ending}": None for ending in endings},
        "b": "not a readable image: no known image format",
    }


def test_what_is_no_regular_file_is_set_aside_unopened(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    os.mkfifo(tmp_path / "rome" / "pipe.png")
    (tmp_path / "rome" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "rome" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "rome" / "self.png").symlink_to(tmp_path / "rome" / "self.png")
    (tmp_path / "rome" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path / "rome")  # the address of a socket has room for a short name only
        listener.bind("socket.png")
        os.chdir(here)
    faults = {image.uri.rpartition("/")[2]: image.fault for image in list_folder(str(tmp_path))}
    assert faults == {
        "a.png": None,
        "pipe.png": "it is a pipe, not a file",
        "zero.png": "it is a device, not a file",
        "gone.png": "it is a link to nothing",
        "self.png": "it is a link to itself",
        "socket.png": "it is a socket, not a file",
    }
    assert left_out(str(tmp_path)) == {"no image, by its ending .txt": ["rome/gone.txt"]}


def test_a_fingerprint_changes_with_the_file(url: str) -> None:
    put(url, "rome/a.png", photo(1))
    put(url, "rome/b.png", photo(2))
    before = {image.uri: image.fingerprint for image in list_folder(url)}
    assert {image.uri: image.fingerprint for image in list_folder(url)} == before
    put(url, "rome/a.png", photo(3))
    after = {image.uri: image.fingerprint for image in list_folder(url)}
    assert [uri[-5:] for uri in before if before[uri] != after[uri]] == ["a.png"]


def test_the_order_mixes_the_labels_and_does_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        for label in ("rome", "oslo"):
            for i in range(100):
                put(str(tmp_path / place), f"{label}/{i}.png", b"")
    one, two = (list_folder(str(tmp_path / place)) for place in ("one", "two"))
    assert [inner_of(str(tmp_path / "one"), image) for image in one] == [
        inner_of(str(tmp_path / "two"), image) for image in two
    ]
    for start in range(0, 200, 50):
        rome = Counter(image.label for image in one[start : start + 50])["rome"]
        assert 12 <= rome <= 38  # 25 ± 3.5, so less likely than 1 in 5000


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(str(tmp_path / "elsewhere"), "a.png", photo())
    put(str(tmp_path / "data"), "oslo/b.png", photo())
    (tmp_path / "data" / "rome").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "oslo" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "turin").symlink_to(tmp_path / "elsewhere")
    found = list_folder(str(tmp_path / "data"))
    assert sorted(inner_of(str(tmp_path / "data"), image) for image in found) == [
        "oslo/b.png",
        "rome/a.png",
    ]
    assert left_out(str(tmp_path / "data")) == {
        "a link to a folder that is listed already": ["oslo/up", "turin"]
    }


def test_a_pattern_stands_for_several_folders_of_the_same_labels(url: str) -> None:
    for inner in ("train/rome/a.png", "train/oslo/b.png", "test/rome/a.png", "notes.txt"):
        put(url, inner, photo())
    found = list_folder(f"{url}/*")
    assert {(inner_of(url, image), image.label) for image in found} == {
        ("train/rome/a.png", "rome"),
        ("train/oslo/b.png", "oslo"),
        ("test/rome/a.png", "rome"),
    }
    assert {image.uri for image in list_folder(f"{url}/t*n")} == {
        image.uri for image in found if "/train/" in image.uri
    }
    with pytest.raises(InputError, match="there is no such folder"):
        list_folder(f"{url}/x*")


def test_no_such_folder_is_said(url: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        list_folder(f"{url}/nothing")
    with pytest.raises(InputError, match="is not understood"):
        list_folder("nosuch://a/b")


def test_a_folder_without_labels_is_said(url: str) -> None:
    put(url, "a.png", photo())
    with pytest.raises(InputError, match="its images lie in no sub-folder, so they have no label"):
        list_folder(url)


def test_a_folder_without_images_is_said(url: str) -> None:
    put(url, "rome/a.txt", b"")
    put(url, "rome/b.txt", b"")
    with pytest.raises(InputError, match=r"hold no images \(other files: 2\)"):
        list_folder(url)


def test_the_digest_is_that_of_the_listing(url: str) -> None:
    put(url, "rome/a.png", photo(1))
    put(url, "oslo/b.png", photo(2))
    before = open_source(url).digest
    assert open_source(f"{url}/").digest == before
    put(url, "rome/a.png", photo(3))
    assert open_source(url).digest != before
    put(url, "rome/c.png", photo(4))
    source = open_source(url)
    digest = source.digest
    put(url, "rome/d.png", photo(5))
    (shard,) = source.plan([], 10).new  # of the listing that has this digest
    assert len(shard.images) == 3
    assert source.digest == digest


def test_a_check_wants_an_image_with_a_label(url: str) -> None:
    put(url, "top.png", photo())
    with pytest.raises(InputError, match="its images lie in no sub-folder"):
        check_source(url)
    put(url, "rome/a.png", photo())
    check_source(url)


def test_names_that_cannot_be_kept_are_set_aside(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    put(str(tmp_path), "rome/x.tar#bytes=1-2/a.png", photo())
    with open(os.fsencode(tmp_path) + b"/rome/caf\xe9.png", "wb") as file:  # noqa: PTH123 - bytes
        file.write(photo())
    table = index_shard(list_folder(str(tmp_path)))
    faults = {row["uri"].rpartition("rome/")[2]: row["set_aside"] for row in table.to_pylist()}
    assert faults == {
        "a.png": None,
        "x.tar#bytes=1-2/a.png": "its name reads like a place in an archive",
        "caf?.png": "its name is no UTF-8; rename it",
    }


@pytest.mark.slow
def test_more_files_than_one_answer_of_s3_holds_are_listed(bucket: str) -> None:
    fs = fsspec.filesystem("s3")
    fs.pipe({f"{bucket}/many/rome/{i}.png": b"" for i in range(1005)})
    assert len(list_folder(f"s3://{bucket}/many")) == 1005


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_is_closed_to_us_is_said(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    for closed in ("lost+found", "oslo"):
        put(str(tmp_path), f"{closed}/b.png", photo())
        (tmp_path / closed).chmod(0)
        if closed == "lost+found":
            assert left_out(str(tmp_path)) == {"left by a program: lost+found": ["lost+found"]}
    with pytest.raises(InputError, match=r"access is denied.*oslo"):
        list_folder(str(tmp_path))
