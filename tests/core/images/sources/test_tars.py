from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from written_images import own_name, photo, put, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.shards import FoundImage, KnownShard, good, index_shard
from diffmining_core.images.sources import check_source, open_source


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
