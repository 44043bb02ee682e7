from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from written_images import image_table, parquet_of, photo, put, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.shards import LABEL_FAULT, index_shard
from diffmining_core.images.sources import (
    BESIDE,
    NO_TARGET,
    PACKED_TAR,
    canonical_url,
    check_apart,
    check_source,
    open_source,
)

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
    with pytest.raises(InputError, match="cannot keep results"):
        check_apart(f"{url}/photos", "nosuch://a")


def test_links_do_not_hide_that_a_root_is_in_its_dataset(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(InputError, match="lies in the dataset"):
        check_apart(str(tmp_path / "photos"), str(tmp_path / "link" / "mined"))


def counted(url: str) -> tuple[list[str], dict[str, list[str]]]:
    """The labels of a dataset's images, and the names of what is left out by reason."""
    plan = open_source(url).plan([], 100)
    labels = [image.label for shard in plan.new for image in shard.images if not image.fault]
    return sorted(labels), plan.left_out.names


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    put(str(tmp_path), "kept/1.tar", tar_of({"b.png": photo(1), "b.cls": b"oslo"}))
    put(str(tmp_path), "kept/cities/oslo/b.png", photo(1))
    put(str(tmp_path), "kept/shards/x.tar", tar_of({"c.png": photo(2), "c.cls": b"bern"}))
    put(str(tmp_path), "tars/0.tar", TAR)
    put(str(tmp_path), "splits/train/rome/a.png", photo())
    (tmp_path / "tars/1.tar").symlink_to("../kept/1.tar")
    (tmp_path / "tars/2.tar").symlink_to("nowhere")
    (tmp_path / "tars/more").symlink_to("../kept/shards")
    (tmp_path / "splits/test").symlink_to("../kept/cities")
    with pytest.raises(InputError, match=r"1\.tar: outside what the dataset may reach: .*/kept/"):
        open_source(f"{tmp_path}/tars")
    with pytest.raises(InputError, match="outside what the dataset may reach"):
        open_source(f"{tmp_path}/tars/1.tar")
    allow = [f"{tmp_path}/kept"]
    for url in (f"{tmp_path}/tars", f"{tmp_path}/tars/*.tar"):
        source = open_source(url, allow=allow)
        assert [image.label for image in source.images()] == ["rome", "oslo"]
        assert source.plan([], 9).left_out.names[NO_TARGET] == ["2.tar"]
    deeper = open_source(f"{tmp_path}/*/more/*.tar", allow=allow)
    assert [image.label for image in deeper.images()] == ["bern"]
    both = open_source(f"{tmp_path}/splits/*", allow=allow)
    assert {image.label for image in both.images()} == {"rome", "oslo"}
    with pytest.raises(InputError, match="are splits and no labels"):
        check_source(f"{tmp_path}/splits", allow=allow)


def test_linked_tables_are_read(tmp_path: Path) -> None:
    put(str(tmp_path), "x/a.parquet", TABLE)
    put(str(tmp_path), "x/a.csv", b"uri,label\na.png,rome\n")
    for name in ("a.parquet", "a.csv"):
        (tmp_path / "x" / f"linked-{name}").symlink_to(name)
    assert counted(f"{tmp_path}/x")[0] == ["rome", "rome"]
    assert counted(f"{tmp_path}/x/linked*.csv")[0] == ["rome"]


@pytest.mark.parametrize(("name", "data"), [("a.tar", TAR), ("a.parquet", TABLE)])
def test_what_lies_beside_the_files_of_a_dataset_is_counted(
    url: str, name: str, data: bytes
) -> None:
    put(url, name, data)
    before = open_source(url).digest
    for other in ("b.tgz", "c.tar.gz", "x.jpg", "notes.txt", ".hidden", "docs/readme.txt"):
        put(url, other, b"")
    labels, left_out = counted(url)
    assert labels == ["rome"]
    assert {reason: sorted(names) for reason, names in left_out.items()} == {
        PACKED_TAR: ["b.tgz", "c.tar.gz"],
        BESIDE: ["docs", "notes.txt", "x.jpg"],
        "hidden": [".hidden"],
    }
    assert open_source(url).digest != before


def test_what_lies_beside_the_folders_of_a_pattern_is_counted(url: str) -> None:
    put(url, "train/rome/a.png", photo())
    put(url, "b.png", photo())
    assert counted(f"{url}/*") == (["rome"], {BESIDE: ["b.png"]})


def test_what_lies_beside_the_tables_of_a_pattern_is_counted(url: str) -> None:
    put(url, "a.csv", b"uri,label\na.png,rome\n")
    put(url, "._a.csv", b"")
    assert counted(f"{url}/*.csv") == (["rome"], {"left by a program: ._*": ["._a.csv"]})


@pytest.mark.parametrize(
    "names", [("train", "test", "docs"), ("train2017", "val2017"), ("TEST_set", "Train-1")]
)
def test_splits_are_told_by_how_their_names_begin(url: str, names: Sequence[str]) -> None:
    for name in names:
        put(url, f"{name}/readme.txt" if name == "docs" else f"{name}/rome/a.png", photo())
    with pytest.raises(InputError, match=f"its folders {', '.join(sorted(set(names) - {'docs'}))}"):
        check_source(url)


def test_words_that_begin_like_splits_are_labels(url: str) -> None:
    for name in ("trainers", "valleys"):
        put(url, f"{name}/deep/a.png", photo())
    assert {image.label for image in open_source(url).images()} == {"trainers", "valleys"}


@pytest.mark.parametrize("label", ["a\nb", "a\0b", "a\x1b[31mb", "a\u2028b"])
def test_a_label_with_control_characters_is_set_aside_everywhere(
    tmp_path: Path, label: str
) -> None:
    put(str(tmp_path), "tars/a.tar", tar_of({"a.png": photo(), "a.txt": label.encode()}))
    put(str(tmp_path), "tables/a.parquet", parquet_of(image_table({"a.png": photo()}, [label])))
    put(str(tmp_path), "list/a.png", photo())
    listed = pa.table({"uri": ["a.png"], "label": [label]})
    put(str(tmp_path), "list/a.parquet", parquet_of(listed))
    datasets = ["tars", "tables", "list/a.parquet"]
    if "\0" not in label:
        put(str(tmp_path), f"folder/{label}/a.png", photo())
        datasets.append("folder")
    for dataset in datasets:
        (found,) = open_source(f"{tmp_path}/{dataset}").images()
        assert (found.label, found.fault) == ("", LABEL_FAULT)
        assert index_shard([found]).column("set_aside").to_pylist() == [LABEL_FAULT]
