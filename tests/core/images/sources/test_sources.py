from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from written_images import image_table, parquet_of, photo, put, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.sources import canonical_url, check_apart, check_source, open_source

TAR = tar_of({"a.png": photo(), "a.cls": b"rome"})
TABLE = parquet_of(image_table({"a.png": photo()}, ["rome"]))


def kind(url: str) -> str:
    return type(open_source(url)).__name__


def test_an_address_has_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for typed in ("photos", "photos/", "./photos", "x/../photos", f"file://{tmp_path}/photos"):
        assert canonical_url(typed) == str(tmp_path / "photos")
    assert canonical_url("s3://b/photos/") == canonical_url("s3://b/photos") == "s3://b/photos"
    put("photos", "rome/a.png", photo())
    assert open_source("./photos/").url == str(tmp_path / "photos")
    assert open_source("./photos/").digest == open_source(str(tmp_path / "photos")).digest


def test_the_kind_is_told_by_what_is_there(url: str) -> None:
    put(url, "folder/rome/a.png", photo())
    put(url, "tars/a.tar", TAR)
    put(url, "tables/a.parquet", TABLE)
    put(url, "tables/.hidden.tar", b"")
    put(url, "list.csv", b"uri,label\na.png,rome\n")
    assert kind(f"{url}/folder") == "FolderSource"
    assert kind(f"{url}/fold*") == "FolderSource"
    assert kind(f"{url}/tars") == kind(f"{url}/tars/a.tar") == kind(f"{url}/tars/*") == "TarSource"
    assert kind(f"{url}/tables") == kind(f"{url}/tables/a.parquet") == "TableSource"
    assert kind(f"{url}/list.csv") == kind(f"{url}/*.csv") == "ManifestSource"


def test_sub_folders_of_images_go_before_files_beside_them(url: str) -> None:
    put(url, "rome/notes.txt", b"")
    put(url, "truth.parquet", TABLE)
    assert kind(url) == "TableSource"
    put(url, "rome/a.png", photo())
    assert kind(url) == "FolderSource"


def test_what_is_not_there_is_said(url: str) -> None:
    put(url, "rome/a.png", photo())
    for missing in ("none", "none.csv", "none.tar", "n*e"):
        with pytest.raises(InputError, match="there is no such folder or file"):
            check_source(f"{url}/{missing}")
    with pytest.raises(InputError, match="is not understood"):
        check_source("nosuch://a/b")


def test_what_is_no_dataset_is_said(url: str) -> None:
    put(url, "a.png", photo())
    put(url, "x/a.tar", TAR)
    put(url, "x/b.parquet", TABLE)
    with pytest.raises(InputError, match=r"files ending in \.png are no dataset; give a folder"):
        check_source(f"{url}/a.png")
    with pytest.raises(InputError, match=r"files ending in \.parquet, \.tar are no dataset"):
        check_source(f"{url}/x/*")
    with pytest.raises(InputError, match=r"holds both tars and Parquet files; give '.*/x/\*\.tar'"):
        check_source(f"{url}/x")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "VAL", "dev")])
def test_splits_are_no_labels(url: str, names: Sequence[str]) -> None:
    for name in names:
        put(url, f"{name}/rome/a.png", photo())
    put(url, "@eaDir/b/b.png", photo())
    says = f"are splits and no labels; give '{re.escape(canonical_url(url))}/\\*' for all"
    with pytest.raises(InputError, match=says):
        check_source(url)
    assert {image.label for image in open_source(f"{url}/*").images()} == {"rome"}
    put(url, "oslo/b.png", photo())
    check_source(url)


def test_labels_may_be_called_like_splits(url: str) -> None:
    for name in ("train", "test"):
        put(url, f"{name}/a.png", photo())
    assert {image.label for image in open_source(url).images()} == {"train", "test"}


def test_a_root_is_not_in_its_dataset(url: str) -> None:
    put(url, "photos/rome/a.png", photo())
    put(url, "photos.csv", b"")
    refused = [
        ("photos", "photos"),
        ("photos", "photos/mined"),
        ("photos/", "photos/rome/mined/"),
        ("photos/*", "photos"),
        ("photos/*", "photos/mined"),
        ("*/rome", "photos/rome/mined"),
    ]
    for dataset, root in refused:
        with pytest.raises(InputError, match=r"lies in the dataset .*; give a root beside"):
            check_apart(f"{url}/{dataset}", f"{url}/{root}")
    allowed = [("photos", "photos-mined"), ("photos", "."), ("photos.csv", "mined")]
    for dataset, root in [*allowed, ("photos/*.tar", "photos/mined")]:
        check_apart(f"{url}/{dataset}", f"{url}/{root}" if root != "." else url)
    check_apart(f"{url}/photos", "nosuch://a")


def test_links_do_not_hide_that_a_root_is_in_its_dataset(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(InputError, match="lies in the dataset"):
        check_apart(str(tmp_path / "photos"), str(tmp_path / "link" / "mined"))
