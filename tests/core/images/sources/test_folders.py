from __future__ import annotations

import logging
import os
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


def test_other_files_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for inner in ("rome/a.png", "rome/notes.txt", "truth.parquet"):
        put(str(tmp_path), inner, b"")
    with caplog.at_level(logging.INFO):
        list_folder(str(tmp_path))
    assert "2 files that are no labelled images are ignored" in caplog.text


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
    (tmp_path / "data" / "oslo" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = list_folder(str(tmp_path / "data"))
    assert sorted(inner_of(str(tmp_path / "data"), image) for image in found) == [
        "oslo/b.png",
        "rome/a.png",
    ]


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
    put(str(tmp_path), "oslo/b.png", photo())
    (tmp_path / "oslo").chmod(0)
    with pytest.raises(InputError, match="access is denied"):
        list_folder(str(tmp_path))
