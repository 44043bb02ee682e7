from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarded_images import Guarded, guarded_images
from PIL import Image
from written_images import claiming, photo, put

from diffmining_core.errors import InputError
from diffmining_core.images import shards
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.reach import ALLOW
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.shards import (
    KEPT_FILE,
    SHARD_SCHEMA,
    FoundImage,
    KeptImages,
    Notes,
    check_labels,
    check_set_aside,
    check_share,
    details_id,
    good,
    images_of,
    index_shard,
    shard_content_id,
    with_notes,
)
from diffmining_core.images.sources import open_source


def list_folder(url: str) -> list[FoundImage]:
    return [image for shard in open_source(url).plan([], 1000).new for image in shard.images]


def test_good_images_are_hashed_and_measured(url: str) -> None:
    for i in range(20):
        put(url, f"{('rome', 'oslo')[i % 2]}/{i}.png", photo(i, 40 + i, 60))
    found = list_folder(url)
    seen: list[int] = []
    table = index_shard(found, seen.append)
    assert table.schema == SHARD_SCHEMA
    assert sum(seen) == 20
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
    assert images_of(table, "")[0] == ShardImage(
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


def test_images_that_are_not_opened_are_counted_too() -> None:
    seen: list[int] = []
    declared = FoundImage("/none.png", "rome", "a" * 32, "a" * 32, 40, 50)
    table = index_shard([declared, FoundImage.faulty("/b", "", "it has no label")], seen.append)
    assert sum(seen) == 2
    assert images_of(good(table), "") == [ShardImage("a" * 32, "/none.png", "rome", 40, 50, True)]
    assert table.column("set_aside").to_pylist() == [None, "it has no label"]


def test_an_image_of_several_labels_is_opened_once(tmp_path: Path) -> None:
    put(str(tmp_path), "a.png", photo(1))
    put(str(tmp_path), "b.png", b"no image")
    box = (1.0, 2.0, 3.0, 4.0)
    found = [
        FoundImage(str(tmp_path / "a.png"), "mass", "", detail="left", boxes=(box,)),
        FoundImage(str(tmp_path / "a.png"), "nodule", ""),
        FoundImage(str(tmp_path / "b.png"), "mass", ""),
        FoundImage(str(tmp_path / "b.png"), "nodule", ""),
    ]
    seen: list[int] = []
    table = index_shard(found, seen.append)
    assert seen == [0, 2, 2]
    first, second = images_of(good(table), "")
    assert (first.label, first.detail, first.boxes) == ("mass", "left", (box,))
    assert (second.label, second.detail, second.boxes) == ("nodule", None, ())
    assert first.image_id == second.image_id == hashlib.sha256(photo(1)).hexdigest()[:32]
    reasons = table.column("set_aside").to_pylist()
    assert reasons[:2] == [None, None]
    assert reasons[2] == reasons[3] == "not a readable image: no known image format"


def test_notes_are_no_part_of_the_content_but_details_have_an_id_of_their_own() -> None:
    shared = {"image_id": "a" * 32, "uri": "/a", "label": "rome", "fingerprint": "1"}
    plain = pa.Table.from_pylist([{**shared, "declared": False}], schema=SHARD_SCHEMA)
    noted = with_notes(plain, [Notes(0, "Lazio", ((1.0, 2.0, 3.0, 4.0),))])
    assert noted.schema == SHARD_SCHEMA
    assert shard_content_id(noted) == shard_content_id(plain)
    assert details_id(plain) == ""
    boxed = with_notes(plain, [Notes(0, None, ((1.0, 2.0, 3.0, 4.0),))])
    assert details_id(boxed) == ""
    assert len(details_id(noted)) == 64
    assert with_notes(noted, [Notes(0, None, ())]).equals(plain)


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
    assert [image.uri[-8:] for image in images_of(good(table), "")] == ["good.png"]


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
    assert "a.png" not in reason  # so that the reasons of many are one
    assert table.column("image_id").null_count == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_is_closed_to_us_is_set_aside(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    (tmp_path / "rome" / "a.png").chmod(0)
    table = index_shard(list_folder(str(tmp_path)))
    assert table.column("set_aside")[0].as_py() == "cannot be read: Permission denied"


def test_a_fault_of_the_storage_is_raised_and_blamed_on_no_image(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo())
    (tmp_path / "rome" / "a.png").unlink()
    (tmp_path / "rome" / "a.png").symlink_to("/proc/self/mem")  # whose first page cannot be read
    with pytest.raises(OSError, match="Input/output error"):
        index_shard([FoundImage(str(tmp_path / "rome" / "a.png"), "rome", "1")])


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
    shared = {"uri": "/a", "fingerprint": "1", "declared": False}
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


def test_a_share_is_that_of_all_images() -> None:
    check_share(["x"], 10, 0.1)
    with pytest.raises(InputError, match=r"^2 of 10 images .* allowed \(2 × x\); mend"):
        check_share(["x", "x"], 10, 0.1)


def test_an_image_whose_address_holds_a_secret_is_read_by_it_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"/{name}.png": photo(number, 48, 40) for number, name in enumerate("ab")}
    with guarded_images(Guarded(images, "pa55", {"k=t0ken"})) as served:
        monkeypatch.setenv(ALLOW, json.dumps([f"http://{served.host}/"]))
        found = [
            FoundImage(f"http://reader:pa55@{served.host}/a.png", "rome", ""),
            FoundImage(f"http://{served.host}/b.png?k=t0ken", "oslo", "", "f" * 32, 48, 40),
            FoundImage(f"http://{served.host}/c.png?k=t0ken", "oslo", ""),
        ]
        with pytest.raises(ValueError, match="has to be kept"):
            index_shard(found)
        table = index_shard(found, kept=KeptImages(tmp_path / KEPT_FILE))
    assert "pa55" not in repr((found, table.to_pydict()))
    assert "t0ken" not in repr((found, table.to_pydict()))
    first, second, third = table.to_pylist()
    assert first["uri"] == f"http://{served.host}/a.png"
    assert read_bytes(f"{tmp_path}/{first['stored']}") == images["/a.png"]
    assert "image id" in second["set_aside"], "a declared image is opened, and is another"
    assert (second["stored"], third["stored"]) == (None, None)
    (kept,) = images_of(good(table), str(tmp_path))
    assert kept.uri.endswith(f"{KEPT_FILE}#row=0&column=image/a.png")


def test_kept_images_are_written_in_small_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "KEPT_GROUP_BYTES", 10)
    kept = KeptImages(tmp_path / KEPT_FILE)
    places = [kept.add(f"https://host/{number}.jpg", bytes([number]) * 6) for number in range(5)]
    kept.close()
    assert pq.ParquetFile(kept.path).num_row_groups == 3
    for number, place in enumerate(places):
        assert read_bytes(f"{tmp_path}/{place}") == bytes([number]) * 6


def test_without_secrets_nothing_is_kept(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo(0, 48, 40))
    table = index_shard(list_folder(str(tmp_path)), kept=KeptImages(tmp_path / KEPT_FILE))
    assert table["stored"].to_pylist() == [None]
    assert not (tmp_path / KEPT_FILE).exists()


def test_label_and_detail_hold_no_secret() -> None:
    signed = "https://u:pw@h.example/a.jpg?X-Amz-Signature=5ec7e7"
    found = FoundImage("/a.jpg", f"seen at {signed}", "1", detail=signed)
    assert (found.label, found.detail) == (
        "seen at https://h.example/a.jpg",
        "https://h.example/a.jpg",
    )
    plain = FoundImage("/a.jpg", "Who? AC//DC 50%", "1")
    assert (plain.label, plain.detail) == ("Who? AC//DC 50%", None)


def test_a_table_of_an_older_version_lacks_columns(tmp_path: Path) -> None:
    put(str(tmp_path), "rome/a.png", photo(1, 40, 50))
    table = index_shard(list_folder(str(tmp_path)))
    older = table.drop_columns(["stored", "scaled_bits"])
    assert images_of(older, "/mined/index/1/attempt-2") == images_of(table, "")
    assert [image.uri for image in images_of(older, "")] == [f"{tmp_path}/rome/a.png"]
