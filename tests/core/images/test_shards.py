from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.shards import (
    SHARD_SCHEMA,
    FoundImage,
    ShardImage,
    check_labels,
    check_set_aside,
    good,
    images_of,
    index_shard,
    list_folder,
    plan_index,
    shard_content_id,
)


def photo(seed: int = 0, width: int = 48, height: int = 40, **options: Any) -> bytes:
    """A PNG of noise, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png", **options)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""
    data = photo()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a folder with nothing in it."""
    if request.param == "local":
        (tmp_path / "data set #1").mkdir()
        return str(tmp_path / "data set #1")
    if request.param == "memory":
        return f"memory://{uuid4().hex}/data"
    return f"s3://{request.getfixturevalue('bucket')}/{uuid4().hex}"


def put(url: str, inner: str, data: bytes) -> None:
    with fsspec.open(f"{url}/{inner}", "wb", auto_mkdir=True) as file:
        file.write(data)


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


def test_a_file_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo())
    with pytest.raises(InputError, match="there is no such folder"):
        list_folder(str(tmp_path / "a.png"))


def test_good_images_are_hashed_and_measured(url: str) -> None:
    for i in range(20):
        put(url, f"{('rome', 'oslo')[i % 2]}/{i}.png", photo(i, 40 + i, 60))
    found = list_folder(url)
    seen: list[int] = []
    table = index_shard(found, seen.append)
    assert table.schema == SHARD_SCHEMA
    assert seen == [1] * 20
    assert table.column("uri").to_pylist() == [image.uri for image in found]
    assert table.column("label").to_pylist() == [image.label for image in found]
    assert table.column("fingerprint").to_pylist() == [image.fingerprint for image in found]
    assert table.column("set_aside").null_count == 20
    numbers = [int(image.uri.rpartition("/")[2].removesuffix(".png")) for image in found]
    assert table.column("width").to_pylist() == [40 + i for i in numbers]
    assert table.column("height").to_pylist() == [60] * 20
    assert table.column("image_id").to_pylist() == [
        hashlib.sha256(photo(i, 40 + i, 60)).hexdigest()[:32] for i in numbers
    ]
    assert good(table).equals(table)
    assert images_of(table)[0] == ShardImage(
        image_id=table.column("image_id")[0].as_py(),
        uri=found[0].uri,
        label=found[0].label,
        width=40 + numbers[0],
        height=60,
    )


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put(str(tmp_path), "rome/a.png", photo(0, 48, 40, exif=exif))
    row = index_shard(list_folder(str(tmp_path))).to_pylist()[0]
    assert (row["width"], row["height"]) == (40, 48)


def test_no_images_are_an_empty_table() -> None:
    table = index_shard([])
    assert table.schema == SHARD_SCHEMA
    assert table.num_rows == 0
    assert good(table).num_rows == 0
    check_set_aside(table, 0.0)


@pytest.mark.parametrize(
    ("data", "reason", "size"),
    [
        (b"", "not a readable image: no known image format", None),
        (b"<html>404</html>", "not a readable image: no known image format", None),
        (photo()[:-500], "not a readable image: image file is truncated", (48, 40)),
        (photo(0, 31, 40), "shorter side is 31 px, under 32", (31, 40)),
        (photo(0, 32, 257), "32 × 257 px: one side is over 8 times the other", (32, 257)),
        (claiming(20_001, 3000), "longer side is 20001 px, over 20000", (20_001, 3000)),
        (claiming(9440, 9440), "9440 × 9440 px are over 89000000 pixels", (9440, 9440)),
        (claiming(60_000, 60_000), "more pixels than are safe to decode", None),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_reason(
    url: str, data: bytes, reason: str, size: tuple[int, int] | None
) -> None:
    put(url, "rome/bad.png", data)
    put(url, "rome/good.png", photo())
    table = index_shard(list_folder(url))
    (bad,) = (row for row in table.to_pylist() if row["uri"].endswith("bad.png"))
    assert reason in bad["set_aside"]
    assert bad["image_id"] == hashlib.sha256(data).hexdigest()[:32]
    assert (bad["width"], bad["height"]) == (size or (None, None))
    assert [image.uri[-8:] for image in images_of(good(table))] == ["good.png"]


def test_the_smallest_and_the_longest_images_are_good(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo(0, 32, 32))
    put(str(tmp_path), "rome/b.png", photo(0, 256, 32))
    assert good(index_shard(list_folder(str(tmp_path)))).num_rows == 2


def test_large_images_are_good(tmp_path: Path) -> None:
    (tmp_path / "rome").mkdir()
    for i in range(3):
        Image.new("L", (5000, 4000 + i)).save(tmp_path / "rome" / f"{i}.png", compress_level=1)
    table = good(index_shard(list_folder(str(tmp_path))))
    assert sorted(table.column("height").to_pylist()) == [4000, 4001, 4002]


def test_a_file_that_went_away_since_the_listing_is_set_aside(url: str) -> None:
    for name in ("a", "b"):
        put(url, f"rome/{name}.png", photo())
    found = list_folder(url)
    fs, path = fsspec.url_to_fs(url)
    fs.rm(f"{path}/rome/a.png")
    table = index_shard(found)
    assert good(table).num_rows == 1
    (reason,) = table.column("set_aside").drop_null().to_pylist()
    assert reason.startswith("cannot be read: ")
    assert table.column("image_id").null_count == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_is_closed_to_us_is_set_aside(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    (tmp_path / "rome" / "a.png").chmod(0)
    table = index_shard(list_folder(str(tmp_path)))
    assert "cannot be read: " in table.column("set_aside")[0].as_py()


def test_a_fault_of_the_storage_is_raised_and_blamed_on_no_image(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    (tmp_path / "rome" / "a.png").unlink()
    (tmp_path / "rome" / "a.png").symlink_to("a.png")  # stands in for any fault that may pass
    with pytest.raises(OSError, match="symbolic links"):
        index_shard([FoundImage(str(tmp_path / "rome" / "a.png"), "rome", "1")])


def indexed(found: list[FoundImage]) -> pa.Table:
    """A shard of these files, as far as the plan looks."""
    rows = [{"uri": f.uri, "label": f.label, "fingerprint": f.fingerprint} for f in found]
    return pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)


def files(names: str, fingerprint: str = "1") -> list[FoundImage]:
    return [FoundImage(f"/d/rome/{name}", "rome", fingerprint) for name in names]


def test_a_first_index_is_cut_into_shards() -> None:
    plan = plan_index(files("abcdefg"), {}, shard_rows=3)
    assert plan.keep == []
    assert plan.new == [files("abc"), files("def"), files("g")]


def test_an_index_with_nothing_new_keeps_its_shards() -> None:
    known = {"k2": indexed(files("def")), "k1": indexed(files("abc")), "k3": indexed(files("g"))}
    plan = plan_index(files("gfedcba"), known, shard_rows=3)
    assert sorted(plan.keep) == ["k1", "k2", "k3"]
    assert plan.new == []
    assert plan_index(files("abcdefg"), known, shard_rows=100) == plan  # size of new shards only


def test_new_images_come_as_new_shards() -> None:
    plan = plan_index(files("xabcyz"), {"k": indexed(files("abc"))}, shard_rows=2)
    assert plan.keep == ["k"]
    assert plan.new == [files("xy"), files("z")]


@pytest.mark.parametrize("now", [files("abef"), files("ab") + files("c", "2") + files("ef")])
def test_a_shard_with_a_lost_or_changed_file_is_retired(now: list[FoundImage]) -> None:
    known = {"k1": indexed(files("abc")), "k2": indexed(files("ef"))}
    plan = plan_index(now, known, shard_rows=10)
    assert plan.keep == ["k2"]
    assert plan.new == [[image for image in now if image.uri[-1] in "abc"]]


def test_a_file_that_returns_is_in_one_kept_shard_only() -> None:
    known = {"before": indexed(files("abc")), "meanwhile": indexed(files("ab"))}
    assert plan_index(files("ab"), known, 10).keep == ["meanwhile"]
    plan = plan_index(files("abc"), known, 10)
    assert (plan.keep, plan.new) == (["before"], [])


def test_a_shard_without_rows_is_not_kept() -> None:
    assert plan_index(files("a"), {"k": indexed([])}, 10).keep == []


def test_any_history_of_a_folder_is_covered_once() -> None:
    """Every file in exactly one shard, kept shards unchanged, whatever came before."""
    chance = random.Random(0)
    known: dict[str, pa.Table] = {}
    for _ in range(60):
        found = [
            FoundImage(f"/d/rome/{i}", "rome", str(chance.randint(1, 2)))
            for i in chance.sample(range(30), chance.randint(0, 30))
        ]
        plan = plan_index(found, known, shard_rows=4)
        kept = [uri for key in plan.keep for uri in known[key].column("uri").to_pylist()]
        new = [image.uri for shard in plan.new for image in shard]
        assert sorted(kept + new) == sorted(image.uri for image in found)
        for shard in plan.new:
            known[f"{len(known):03d}"] = indexed(shard)
        again = plan_index(found, known, shard_rows=4)
        assert again.new == []


def test_content_ids_tell_content_and_not_place(tmp_path: Path) -> None:
    for i in range(4):
        put(str(tmp_path / "one"), f"rome/{i}.png", photo(i))
    put(str(tmp_path / "one"), "rome/bad.png", b"no")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (index_shard(list_folder(str(tmp_path / place))) for place in ("one", "two"))
    assert one.column("uri") != two.column("uri")
    assert shard_content_id(one) == shard_content_id(two)
    assert len(shard_content_id(one)) == 64
    assert shard_content_id(one) != shard_content_id(good(one))
    assert shard_content_id(one) != shard_content_id(one.take([4, 3, 2, 1, 0]))
    relabelled = one.set_column(2, SHARD_SCHEMA.field("label"), [["oslo"] * 5])
    assert shard_content_id(one) != shard_content_id(relabelled)
    nothing = pa.nulls(5, pa.string())
    used = one.set_column(6, SHARD_SCHEMA.field("set_aside"), nothing)
    assert shard_content_id(one) != shard_content_id(used)


def test_content_ids_are_the_same_in_every_version() -> None:
    shared = {"uri": "/a", "fingerprint": "1"}
    used = {"image_id": "a" * 32, "label": "köln", **shared}
    unread = {"label": "rome", "set_aside": "cannot be read: x", **shared}
    table = pa.Table.from_pylist([used, unread], schema=SHARD_SCHEMA)
    lines = f'["{"a" * 32}", "k\\u00f6ln", true]\n[null, "rome", false]\n'
    assert shard_content_id(table) == hashlib.sha256(lines.encode()).hexdigest()


def test_labels_with_too_few_images_are_named() -> None:
    check_labels({"rome": 20, "oslo": 20}, min_images=20)
    with pytest.raises(InputError, match=r"needs 20 usable images.*: oslo \(0\), rome \(19\); add"):
        check_labels({"rome": 19, "oslo": 0, "bonn": 20}, min_images=20)


def test_too_many_images_set_aside_fail_their_shard(tmp_path: Path) -> None:
    for i in range(8):
        put(str(tmp_path), f"rome/{i}.png", photo(i))
    for i in range(2):
        put(str(tmp_path), f"rome/bad{i}.png", b"no")
    table = index_shard(list_folder(str(tmp_path)))
    check_set_aside(table, 0.2)
    with pytest.raises(InputError, match=r"2 of 10 images.*10% allowed \(2 × not a readable") as e:
        check_set_aside(table, 0.1)
    assert str(tmp_path / "rome" / "bad") in str(e.value)
