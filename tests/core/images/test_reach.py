from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_server import ImageServer, image_server
from written_images import photo, put

from diffmining_core.errors import InputError
from diffmining_core.images import web
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.reach import (
    ALLOW,
    ALSO,
    MAX_IMAGE_MB,
    OUTSIDE,
    Reach,
    advice,
    reached_by,
    set_reach,
)
from diffmining_core.images.shards import check_set_aside, index_shard
from diffmining_core.images.sources import check_source, open_source
from diffmining_core.images.sources.layouts import Table, TableLayout
from diffmining_core.secrets import cleaned


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (ALLOW, ALSO, MAX_IMAGE_MB):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(web, "_hosts", {})
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)


CDN = "https://cdn.example/photos/"

REACHED, REFUSED = True, False

TABLE = [
    # Where the dataset is, what an address says, what is allowed, and whether it is reached.
    ("/data/set", "/data/set/a.jpg", (), REACHED),
    ("/data/set", "/data/set/x/../a.jpg", (), REACHED),
    ("/data/set", "file:///data/set/a.jpg", (), REACHED),
    ("/data/set", "/data/set/../a.jpg", (), REFUSED),
    ("/data/set", "/data/set2/a.jpg", (), REFUSED),
    ("/data/set", "/etc/passwd", (), REFUSED),
    ("/data/set", "file:///etc/passwd", (), REFUSED),
    ("/data/set", "FILE:///etc/passwd", (), REFUSED),
    ("/data/set", "local:///etc/passwd", (), REFUSED),
    ("/data/set", "/data/other/a.jpg", ("/data/other",), REACHED),
    ("/data/set", "/data/other/a.jpg", ("/data/other/a.jpg",), REACHED),
    ("/data/set", "/data/other/b.jpg", ("/data/other/a.jpg",), REFUSED),
    ("/data/set", "/anywhere/a.jpg", ("/",), REACHED),
    ("/data/set", "s3://bucket/a.jpg", ("/",), REFUSED),
    ("/data/set", f"{CDN}a.jpg", (), REFUSED),
    ("/data/set", f"{CDN}a.jpg", (CDN,), REACHED),
    ("/data/set", "https://CDN.example:443/photos/a.jpg?size=1#x", (CDN,), REACHED),
    ("/data/set", "https://cdn.example./photos/a.jpg", (CDN,), REACHED),
    ("/data/set", "http://cdn.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://cdn.example:8443/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://cdn.example/photos2/a.jpg", (CDN,), REFUSED),
    ("/data/set", f"{CDN}../secret/a.jpg", (CDN,), REFUSED),
    ("/data/set", f"{CDN}%2e%2E/secret/a.jpg", (CDN,), REFUSED),
    ("/data/set", f"{CDN}x%2f..%2f..%2fsecret/a.jpg", (CDN,), REFUSED),
    ("/data/set", f"{CDN}..%5c..%5csecret/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://cdn.example@evil.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://cdn.example%2f@evil.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://cdn.example\\@evil.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://other.example\\@cdn.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://cdn.example.evil.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "https://me:secret@cdn.example/photos/a.jpg", (CDN,), REACHED),
    ("/data/set", "https://any.example/a.jpg", ("https://",), REACHED),
    ("/data/set", "http://any.example/a.jpg", ("https://",), REFUSED),
    ("/data/set", "http://127.0.0.1/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://localhost/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://2130706433/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://0x7f.1/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://0177.0.0.1/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://[::1]/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://[::ffff:10.0.0.1]/a.jpg", ("http://",), REFUSED),
    ("/data/set", "http://169.254.169.254/latest/meta-data/", ("http://",), REFUSED),
    ("/data/set", "http://[::ffff:127.0.0.1]:8000/a.jpg", ("http://127.0.0.1:8000/",), REACHED),
    ("/data/set", "http://127.0.0.1:8000/a.jpg", ("http://127.0.0.1:8000/",), REACHED),
    ("/data/set", "http://127.0.0.1:8001/a.jpg", ("http://127.0.0.1:8000/",), REFUSED),
    ("/data/set", "simplecache::https://cdn.example/photos/a.jpg", (CDN,), REFUSED),
    ("/data/set", "simplecache::https://cdn.example/photos/a.jpg", ("/",), REFUSED),
    ("/data/set", "filecache::http://127.0.0.1/a.jpg", ("/",), REFUSED),
    ("/data/set", "zip://a.jpg::https://cdn.example/photos/a.zip", (CDN,), REFUSED),
    ("/data/set", "zip://a.jpg::/data/set/a.zip", (), REFUSED),
    ("/data/set", "zip://a.jpg::/data/set/a.zip", ("zip://a.jpg::/data/set/a.zip",), REACHED),
    ("/data/set", "ftp://host/a.jpg", (), REFUSED),
    ("s3://bucket/set", "s3://bucket/set/a.jpg", (), REACHED),
    ("s3://bucket/set", "s3a://bucket/set/a.jpg", (), REACHED),
    ("s3://bucket/set", "s3://bucket/set2/a.jpg", (), REFUSED),
    ("s3://bucket/set", "s3://bucket/set/../a.jpg", (), REFUSED),
    ("s3://bucket/set", "s3://other/set/a.jpg", (), REFUSED),
    ("s3://bucket/set", "s3://other/set/a.jpg", ("s3://other/",), REACHED),
    ("s3://bucket/set", "/etc/passwd", (), REFUSED),
    ("s3://bucket/set", "file:///etc/passwd", (), REFUSED),
    ("http://127.0.0.1:8000/set", "http://127.0.0.1:8000/set/a.jpg", (), REACHED),
    ("http://127.0.0.1:8000/set", "http://127.0.0.1:8000/a.jpg", (), REFUSED),
    ("http://127.0.0.1:8000/set", "http://127.0.0.1:9000/set/a.jpg", (), REFUSED),
    ("https://cdn.example/set", "/etc/passwd", (), REFUSED),
    ("memory://set", "memory:///set/a.jpg", (), REACHED),
    ("memory://set", "memory://other/a.jpg", (), REFUSED),
]  # fmt: skip


@pytest.mark.parametrize(("own", "address", "allow", "is_reached"), TABLE)
def test_the_confinement_table(
    own: str, address: str, allow: tuple[str, ...], is_reached: bool
) -> None:
    fault = Reach(own, allow).fault(address)
    assert (fault is None) == is_reached, fault


@pytest.mark.parametrize(("own", "address", "allow", "is_reached"), TABLE)
def test_what_is_refused_says_what_to_allow(
    own: str, address: str, allow: tuple[str, ...], is_reached: bool
) -> None:
    fault = Reach(own, allow).fault(address)
    if fault is not None and fault.startswith(OUTSIDE):
        assert Reach(own, [*allow, fault.removeprefix(OUTSIDE)]).fault(address) is None


def test_an_address_that_cannot_be_read_is_refused() -> None:
    reach = Reach("/data", ["https://", "/"])
    for address in ("/data/a\0b", "http:///a", "https://[::1/a", "https://h:99999/a"):
        assert reach.fault(address), address


@pytest.mark.parametrize(
    "place", ["", " ", "/photos/*", "~", "~/photos", "http:", "http://*", "s3://b/*", "file:/x"]
)
def test_what_would_allow_nothing_is_refused(place: str) -> None:
    with pytest.raises(InputError, match=r"is no place that can be allowed: .*; give a folder"):
        Reach("/data/set", [place])


def test_a_folder_whose_name_looks_like_a_pattern_can_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "[old]").mkdir()
    allowed = Reach("/data/set", [f"{tmp_path}/[old]"])
    assert allowed.fault(f"{tmp_path}/[old]/a.jpg") is None


def test_links_that_leave_the_folder_are_set_aside(tmp_path: Path) -> None:
    for inner in ("in/rome/a.png", "out/b.png", "out/deep/c.png", "in/real/d.png"):
        put(str(tmp_path), inner, photo(len(inner)))
    rome = tmp_path / "in" / "rome"
    (rome / "file.png").symlink_to(tmp_path / "out" / "b.png")
    (rome / "inside.png").symlink_to(tmp_path / "in" / "real" / "d.png")
    (rome / "folder").symlink_to(tmp_path / "out" / "deep")
    dataset = str(tmp_path / "in")
    faults = {
        image.uri.removeprefix(f"{dataset}/"): image.fault
        for image in open_source(dataset).images()
    }
    assert faults == {
        "rome/a.png": None,
        "rome/inside.png": None,
        "real/d.png": None,
        "rome/file.png": f"{OUTSIDE}{tmp_path}/out/",
        "rome/folder/c.png": f"{OUTSIDE}{tmp_path}/out/deep/",
    }
    allowed = open_source(dataset, allow=[f"{tmp_path}/out"])
    assert [image for image in allowed.images() if image.fault] == []
    assert allowed.digest != open_source(dataset).digest


def test_a_dataset_behind_a_link_is_its_own_place(tmp_path: Path) -> None:
    put(str(tmp_path), "real/rome/a.png", photo())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (image,) = open_source(str(tmp_path / "link")).images()
    assert image.fault is None


def test_a_recipe_s_table_behind_a_link_needs_to_be_allowed(tmp_path: Path) -> None:
    put(str(tmp_path), "out/table.csv", b"file,label\na.png,rome\n")
    put(str(tmp_path), "in/a.png", photo())
    (tmp_path / "in" / "table.csv").symlink_to(tmp_path / "out" / "table.csv")
    layout = TableLayout(Table("table.csv"), "{file}", "label")
    with pytest.raises(InputError, match=f"add --allow {tmp_path}/out/$"):
        list(open_source(str(tmp_path / "in"), layout).images())
    (image,) = open_source(str(tmp_path / "in"), layout, [f"{tmp_path}/out/"]).images()
    assert image.fault is None


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


def indexed(manifest: str, allow: tuple[str, ...] = ()) -> dict[str, str | None]:
    """Why each row of a manifest is set aside, by its address."""
    (shard,) = open_source(manifest, allow=allow).plan([], 1000).new
    table = index_shard(shard.images)
    reasons = (table.column(name).to_pylist() for name in ("uri", "set_aside"))
    return dict(zip(*reasons, strict=True))


def test_every_fault_of_one_image_sets_it_aside_and_nothing_else(
    tmp_path: Path, server: ImageServer
) -> None:
    folder = tmp_path / "set"
    put(str(folder), "good.png", photo())
    os.mkfifo(folder / "pipe.png")
    (folder / "null.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    with (folder / "sparse.png").open("wb") as sparse:
        sparse.truncate(40 * 2**30)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket.png"))
    uris = {
        "good.png": None,
        "pipe.png": "it is a pipe, not a file",
        "null.png": "it is a device, not a file",
        "loop.png": "Too many levels of symbolic links",
        "folder.png": "it is a folder, not a file",
        "sparse.png": "its file is over 512 MB; --max-image-mb allows larger ones",
        "socket.png": "it is a socket, not a file",
        "pipe.png/x.png": "Not a directory",
        f"{'x' * 300}.png": "File name too long",
        "not-there.png": "No such file",
        "pipe.png#bytes=0-5/a.png": "No such file",
        "gs://bucket/a.png": "addresses of gs cannot be read",
        "nonsense://a.png": "addresses of nonsense cannot be read",
        f"{server.url}/good.png": None,
        **{f"{server.url}/status/{n}": f"answers {n}" for n in (401, 403, 404, 410, 429, 503)},
        f"{server.url}/circle/a": "redirects in a circle",
        f"{server.url}/to/?http://127.0.0.1:1/": f"{OUTSIDE}http://127.0.0.1:1/",
        f"{server.url}/short": "breaks off",
        "https://no-such-host.invalid/a.png": "no-such-host.invalid",
        "http://127.0.0.1:9/a.png": "cannot be reached",
        f"https://127.0.0.1:{server.server_port}/a.png": "no trusted connection",
    }  # fmt: skip
    manifest = folder / "m.csv"
    manifest.write_text("uri,label\n" + "".join(f"{uri},rome\n" for uri in uris))
    allow = (
        f"{server.url}/", f"https://127.0.0.1:{server.server_port}/", "http://127.0.0.1:9/",
        "https://", "gs://bucket", "nonsense://a.png", "/dev/zero",
    )  # fmt: skip
    set_reach(allow, 512)
    reasons = indexed(str(manifest), allow)
    listening.close()
    for uri, part in uris.items():
        whole = cleaned(uri) if "://" in uri else f"{folder}/{uri}"
        reason = reasons.pop(whole)
        assert (reason is None) == (part is None), (uri, reason)
        assert part is None or part in str(reason), (uri, reason)
    assert not reasons


def test_a_file_that_one_may_not_read_is_set_aside(tmp_path: Path) -> None:
    put(str(tmp_path), "a.png", photo())
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("root may read everything")
    put(str(tmp_path), "m.csv", b"uri,label\na.png,rome\n")
    (reason,) = indexed(str(tmp_path / "m.csv")).values()
    assert reason == "cannot be read: Permission denied"


def test_rows_that_lead_elsewhere_are_told_with_what_to_allow(tmp_path: Path) -> None:
    put(str(tmp_path), "set/a.png", photo())
    rows = ["a.png", "../b.png", "https://cdn.example/1.png", "https://cdn.example/2.png"]
    put(str(tmp_path), "set/m.csv", "\n".join(["uri,label", *(f"{r},x" for r in rows)]).encode())
    (shard,) = open_source(f"{tmp_path}/set/m.csv").plan([], 1000).new
    table = index_shard(shard.images)
    check_set_aside(table, 0.75)
    with pytest.raises(InputError) as refused:
        check_set_aside(table, 0.7)
    assert str(refused.value) == (
        "3 of 4 images of a shard cannot be used, more than the 70% allowed: 3 lead outside the "
        f"dataset, to https://cdn.example/ (2), {tmp_path}/ (1); if they are meant to be read, add "
        f"--allow https://cdn.example/ --allow {tmp_path}/"
    )


def test_a_dataset_that_is_all_elsewhere_is_refused_at_once(tmp_path: Path) -> None:
    put(str(tmp_path), "m.csv", b"uri,label\nhttps://cdn.example/1.png,x\n")
    with pytest.raises(InputError, match=r"--allow https://cdn\.example/$"):
        check_source(str(tmp_path / "m.csv"))
    check_source(str(tmp_path / "m.csv"), allow=["https://cdn.example/"])


def test_many_folders_are_told_by_those_above() -> None:
    reasons = [f"{OUTSIDE}/photos/{label}/" for label in range(100)]
    assert advice(reasons).endswith("add --allow /photos/")
    reasons += [f"{OUTSIDE}https://host{i}.example/" for i in range(100)]
    assert "and 91 more places" in advice(reasons)
    assert "`--allow https://` allows every public host" in advice(reasons)


def test_a_row_of_a_manifest_that_is_allowed_later_is_new(tmp_path: Path) -> None:
    put(str(tmp_path), "b.png", photo())
    put(str(tmp_path), "set/m.csv", b"uri,label\n../b.png,x\n")
    before, after = (open_source(f"{tmp_path}/set/m.csv", allow=a) for a in ([], [str(tmp_path)]))
    assert before.digest != after.digest
    (refused,), (admitted,) = before.images(), after.images()
    assert refused.fingerprint != admitted.fingerprint


def test_the_machine_s_own_list_holds_for_every_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, '["https://cdn.example/"]')
    assert Reach("/data").fault("https://cdn.example/a.jpg") is None
    monkeypatch.setenv(ALLOW, "https://cdn.example/")
    with pytest.raises(InputError, match="DIFFMINING_ALLOW should be a JSON list"):
        Reach("/data")


@pytest.mark.parametrize(
    ("dataset", "own"),
    [
        ("https://h.example/set/m.csv", ["https://h.example/set"]),
        ("https://h.example/set", ["https://h.example/set"]),
        ("https://h.example/set/*.tar", ["https://h.example/set"]),
        ("s3://bucket/set", []),
        ("/data", []),
    ],
)
def test_a_dataset_on_the_web_is_reached_later_too(dataset: str, own: list[str]) -> None:
    assert reached_by(dataset) == own


def test_later_stages_read_what_was_allowed(server: ImageServer) -> None:
    with pytest.raises(InputError, match=OUTSIDE):
        read_bytes(f"{server.url}/a.png")
    set_reach([server.url], 512)
    assert read_bytes(f"{server.url}/a.png") == photo(1)
