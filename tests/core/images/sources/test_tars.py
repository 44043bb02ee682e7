from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from written_images import own_name, parquet_of, photo, put, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.shards import FoundImage, KnownShard, good, index_shard
from diffmining_core.images.sources import check_source, open_source
from diffmining_core.images.sources.layouts import TarLayout


def listed(url: str) -> list[FoundImage]:
    return list(open_source(url).images())


def told(found: list[FoundImage]) -> list[tuple[str, str, str | None]]:
    return [(own_name(image.uri), image.label, image.fault) for image in found]


SAMPLES = {
    "a/0001.jpg": b"one",
    "a/0001.cls": b" rome\n",
    "a/0001.json": b'{"label": "oslo"}',
    "a/0002.json": b'{"label": "oslo"}',
    "a/0002.txt": b"a street",
    "a/0002.png": b"two",
    "b/0002.txt": "köln".encode(),
    "b/0002.seg.png": b"three",
    "c/.hidden.png": b"x",
    "c/readme.md": b"x",
}


def test_samples_have_their_labels_and_bytes(url: str) -> None:
    put(url, "x.tar", tar_of(SAMPLES))
    check_source(f"{url}/x.tar")
    found = listed(f"{url}/x.tar")
    assert told(found) == [
        ("0001.jpg", "rome", None),
        ("0002.png", "oslo", None),
        ("0002.seg.png", "köln", None),
    ]
    assert [read_bytes(image.uri) for image in found] == [b"one", b"two", b"three"]


def test_samples_that_cannot_be_used_have_faults(tmp_path: Path) -> None:
    samples = {
        "1.png": b"x",
        "2.png": b"x",
        "2.json": b"{}",
        "3.cls": b"rome",
        "4.png": b"x",
        "4.cls": b"\xff",
        "5.png": b"x",
        "5.json": b"[1]",
    }
    put(str(tmp_path), "x.tar", tar_of(samples))
    assert told(listed(str(tmp_path))) == [
        ("1.png", "", "it has no label"),
        ("2.png", "", "it has no label"),
        ("3.cls", "", "its sample has no image"),
        ("4.png", "", "it has no label"),
        ("5.png", "", "it has no label"),
    ]
    with pytest.raises(InputError, match=r"no image with a label .4 × it has no label; 1 × its"):
        check_source(str(tmp_path))


def folder_tally(url: str, layout: TarLayout | None = None) -> dict[str, list[str]]:
    plan = open_source(url, layout).plan([], 1000)
    shards = list(plan.new)
    tallies = [plan.left_out, *(shard.left_out for shard in shards)]
    return {
        reason: found["names"] for tally in tallies for reason, found in tally.as_json().items()
    }


def test_dots_in_names_do_not_join_samples(tmp_path: Path) -> None:
    names = [f"{label}/IMG_2024.05.{n:02}" for label in ("hat", "shoes") for n in range(3)]
    members = {
        f"{name}.{kind}": name[:3].encode() if kind == "cls" else name.encode()
        for name in names
        for kind in ("cls", "jpg")
    }
    put(str(tmp_path), "x.tar", tar_of(members))
    found = listed(str(tmp_path))
    assert [own_name(image.uri) for image in found] == [f"{own_name(name)}.jpg" for name in names]
    assert [image.label for image in found] == ["hat"] * 3 + ["sho"] * 3
    assert [read_bytes(image.uri) for image in found] == [name.encode() for name in names]


def test_the_plain_image_of_a_sample_is_its_own(tmp_path: Path) -> None:
    sample = {"1.cls": b"rome", "1.depth.png": b"d", "1.jpg": b"x", "1.mask.png": b"m"}
    put(str(tmp_path), "x.tar", tar_of(sample))
    assert told(listed(str(tmp_path))) == [("1.jpg", "rome", None)]
    assert folder_tally(str(tmp_path)) == {
        "another image of its sample": ["1.depth.png", "1.mask.png"]
    }


@pytest.mark.parametrize(
    ("images", "image"), [(("depth.png", "rgb.jpg"), "rgb.jpg"), (("jpg", "png"), "png")]
)
def test_which_of_several_images_is_told_by_a_layout_or_asked(
    tmp_path: Path, images: tuple[str, str], image: str
) -> None:
    url = str(tmp_path)
    put(url, "x.tar", tar_of({f"1.{e}": b"x" for e in images} | {"1.cls": b"rome"}))
    with pytest.raises(InputError, match=f"2 × its sample has several images .{', '.join(images)}"):
        check_source(url)
    layout = TarLayout(image=image)
    found = list(open_source(url, layout).images())
    assert told(found) == [(f"1.{image}", "rome", None)]
    assert sum(map(len, folder_tally(url, layout).values())) == 1
    assert open_source(url, layout).digest != open_source(url).digest


def test_shards_read_in_another_way_are_new(tmp_path: Path) -> None:
    put(str(tmp_path), "x.tar", tar_of({"1.jpg": b"x", "1.png": b"y", "1.cls": b"rome"}))
    layouts = [TarLayout(image="jpg"), TarLayout(image="png")]
    known: list[KnownShard] = []
    for layout in layouts:
        plan = open_source(str(tmp_path), layout).plan(known, 10)
        assert plan.keep == []
        known += [KnownShard(layout.image or "", shard.part, pytest.fail) for shard in plan.new]
    plan = open_source(str(tmp_path), layouts[0]).plan(known, 10)
    assert ([kept.key for kept in plan.keep], list(plan.new)) == (["jpg"], [])


def test_rubbish_in_a_tar_is_left_out_and_counted(tmp_path: Path) -> None:
    rubbish = ("./._1.png", "__MACOSX/._1.png", "a/@eaDir/1.png", "a/.hidden.png")
    members = dict.fromkeys(rubbish, b"x") | {"./1.png": b"x", "./1.cls": b"rome"}
    put(str(tmp_path), "x.tar", tar_of(members | {"a/../2.png": b"x", "a/../2.cls": b"oslo"}))
    assert told(listed(str(tmp_path))) == [("1.png", "rome", None), ("2.png", "oslo", None)]
    assert folder_tally(str(tmp_path)) == {
        "left by a program: ._*": ["./._1.png"],
        "left by a program: __MACOSX": ["__MACOSX/._1.png"],
        "left by a program: @eaDir": ["a/@eaDir/1.png"],
        "hidden": ["a/.hidden.png"],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_byte_order_marks_are_no_part_of_a_label(tmp_path: Path, encoding: str, kind: str) -> None:
    text = '{"label": "köln"}' if kind == "json" else "köln\n"
    put(str(tmp_path), "x.tar", tar_of({"1.png": b"x", f"1.{kind}": text.encode(encoding)}))
    assert told(listed(str(tmp_path))) == [("1.png", "köln", None)]


def test_a_record_without_a_label_hides_no_label(tmp_path: Path) -> None:
    samples = {
        "1.png": b"x",
        "1.json": b'{"width": 9}',
        "1.txt": b"rome",
        "2.png": b"x",
        "2.json": b"no JSON",
        "2.txt": b"oslo",
    }
    put(str(tmp_path), "x.tar", tar_of(samples))
    assert [image.label for image in listed(str(tmp_path))] == ["rome", "oslo"]


def test_a_caption_is_a_label_only_if_asked_for(tmp_path: Path) -> None:
    url = str(tmp_path)
    sample = {"1.jpg": b"x", "1.json": b'{"caption": "a hat", "url": "x"}', "1.txt": b"a hat"}
    put(url, "0.tar", tar_of(sample))
    put(url, "0.parquet", parquet_of(pa.table({"url": ["x"], "caption": ["a hat"]})))
    put(url, "0_stats.json", b"{}")
    with pytest.raises(InputError, match=r"1 × its \.txt is a caption.*label = \"txt\""):
        check_source(url)
    asked = TarLayout(label="txt")
    check_source(url, asked)
    assert told(list(open_source(url, asked).images())) == [("1.jpg", "a hat", None)]


def test_an_image_of_an_unknown_ending_is_opened(tmp_path: Path) -> None:
    samples = {"1.photo": b"x", "1.cls": b"rome", "license": b"x", "2": b"x", "2.txt": b"oslo"}
    put(str(tmp_path), "x.tar", tar_of(samples))
    assert told(listed(str(tmp_path))) == [("1.photo", "rome", None), ("2", "oslo", None)]
    assert folder_tally(str(tmp_path)) == {
        "in a tar with neither image nor label": ["license"],
    }


def test_a_link_is_no_image(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    put(str(tmp_path), "x.tar", buffer.getvalue())
    assert told(listed(str(tmp_path))) == [("1.png", "", "it is a link or sparse in its tar")]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for name, data in (("ü" * 150 + "/1.png", b"12345"), ("ü" * 150 + "/1.cls", b"rome")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (found,) = listed(str(tmp_path))
    assert (found.label, read_bytes(found.uri)) == ("rome", b"12345")


def cut_short(tar: bytes) -> dict[str, tuple[bytes, int]]:
    """A tar of three samples of two members of one block, damaged; and how many are whole."""
    return {
        "in the data": (tar[: 4 * 1024 + 600], 2),
        "in a header": (tar[: 4 * 1024 + 100], 2),
        "at a sample's end": (tar[: 4 * 1024], 2),
        "at a member's end": (tar[: 5 * 1024], 2),
        "a bad header": (tar[: 4 * 1024] + b"x" * 512 + tar[4 * 1024 + 512 :], 2),
    }


@pytest.mark.parametrize("how", cut_short(b""))
def test_a_tar_that_is_cut_short_or_damaged_says_so(tmp_path: Path, how: str) -> None:
    whole = tar_of({f"{i}.{kind}": b"rome" for i in range(3) for kind in ("cls", "png")})
    data, samples = cut_short(whole)[how]
    put(str(tmp_path), "x.tar", data)
    found = listed(str(tmp_path))
    assert [image.label for image in found[:samples]] == ["rome"] * samples
    assert all(image.fault for image in found[samples:])
    assert own_name(found[-1].uri) == "rest"
    assert "the tar is cut short or damaged from byte" in (found[-1].fault or "")
    put(str(tmp_path), "x.tar", whole)
    assert [image.fault for image in listed(str(tmp_path))] == [None] * 3


def test_what_follows_the_end_of_a_tar_is_said(tmp_path: Path) -> None:
    first, second = (tar_of({f"{name}.png": photo(), f"{name}.cls": b"rome"}) for name in "ab")
    for data in (first + second, first + bytes(20 * 512), first + bytes(1000) + b"x"):
        put(str(tmp_path), "x.tar", data)
        good, rest = listed(str(tmp_path))
        assert (good.label, good.fault) == ("rome", None)
        assert own_name(rest.uri) == "rest"
        assert "was not fetched whole, or several were joined" in (rest.fault or "")
    for blocks in range(25):  # whatever the padding that a tar of its own ends with
        put(str(tmp_path), "x.tar", tar_of({"a.png": bytes(512 * blocks), "a.cls": b"rome"}))
        assert [image.fault for image in listed(str(tmp_path))] == [None]


@pytest.mark.parametrize("data", [b"", b"no tar", gzip.compress(tar_of(SAMPLES))])
def test_what_is_no_tar_is_refused(url: str, data: bytes) -> None:
    put(url, "x.tar", data)
    with pytest.raises(InputError, match=r"x\.tar is no readable tar.*must not be compressed"):
        check_source(f"{url}/x.tar")


def test_tars_are_indexed_and_only_new_ones_opened(url: str) -> None:
    for i in range(2):
        put(url, f"{i}.tar", tar_of({"a.png": photo(i), "a.cls": b"rome"}))
    source = open_source(url)
    new = list(source.plan([], 10).new)
    assert sum(good(index_shard(shard.images)).num_rows for shard in new) == 2
    known = [KnownShard(f"k{i}", shard.part, pytest.fail) for i, shard in enumerate(new)]
    put(url, "1.tar", b"")
    put(url, "2.tar", tar_of({"b.png": photo(3), "b.cls": b"rome"}))
    changed = open_source(f"{url}/*.tar")
    assert changed.digest != source.digest
    plan = changed.plan(known, 10)
    assert [kept.key for kept in plan.keep] == ["k0"]
    assert own_name(next(plan.new).images[0].uri) == "b.png"
    with pytest.raises(InputError, match=r"1\.tar is no readable tar"):
        next(plan.new)


def test_a_tar_that_is_replaced_after_its_listing_is_said(url: str) -> None:
    put(url, "x.tar", tar_of({"a.png": photo(1), "a.cls": b"rome"}))
    (shard,) = open_source(url).plan([], 10).new
    put(url, "x.tar", tar_of({"b.png": b"", "a.png": photo(2)}))
    with pytest.raises(InputError, match=r"x\.tar has changed or gone since it was listed"):
        index_shard(shard.images)
