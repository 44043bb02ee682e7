from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import fsspec
import pytest
from faulty_proxy import FaultyProxy
from s3_servers import S3Server, moto_server

from diffmining_core.errors import InputError
from diffmining_core.store import roots
from diffmining_core.store.ledger import Attempt, complete, published, verify
from diffmining_core.store.roots import Root, filesystem, open_root
from diffmining_core.store.storage_check import check_storage
from diffmining_core.store.units import Unit

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


@pytest.mark.parametrize("servers", ["bucket", "rgw_bucket"])
def test_s3_tells_a_browser_what_a_file_is(
    request: pytest.FixtureRequest, tmp_path: Path, servers: str
) -> None:
    root = open_root(f"s3://{request.getfixturevalue(servers)}/{uuid4().hex}")
    root.write_bytes("index.html", b"<h1>page</h1>")
    root.write_new("pictures/a.webp", b"RIFF")
    (tmp_path / "report.css").write_bytes(b"h1 { color: teal }")
    root.write_file("report.css", tmp_path / "report.css")
    root.write_new("maps", b"no page leads here")
    kinds = {}
    for name in ("index.html", "pictures/a.webp", "report.css", "maps"):
        with urlopen(root.fs.sign(root.path_of(name))) as answer:
            kinds[name] = answer.headers["content-type"]
    assert kinds == {
        "index.html": "text/html; charset=utf-8",
        "pictures/a.webp": "image/webp",
        "report.css": "text/css; charset=utf-8",
        "maps": "binary/octet-stream",
    }


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


# Not moto's server, which looks first and writes then: two may win there.
@pytest.mark.parametrize("url", ["local", "memory", "rgw"], indirect=True)
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
        (lambda _: "photos::mined", "is not understood"),
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk takes root and the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_keeps_what_is_finished_and_the_next_run_goes_on(
    small_disk: Path,
) -> None:
    root = open_root(str(small_disk))
    (small_disk / "another's").write_bytes(bytes(200_000))
    first = complete(root, unit("a"), lambda a: a.write_bytes("a", b"1" * 10_000))
    with pytest.raises(InputError, match=r"no space is left.*what is finished is kept"):
        complete(root, unit("b"), lambda a: a.write_bytes("b", b"2" * 100_000))
    with pytest.raises(InputError, match="no space is left"):
        root.write_bytes("summary.json", bytes(100_000))
    assert root.names() == ["another's", "manifests", "patches"]
    (small_disk / "another's").unlink()
    assert published(root, "patches") == {unit("a").key}
    assert complete(root, unit("a"), lambda a: None) == first
    verify(root, complete(root, unit("b"), lambda a: a.write_bytes("b", b"2" * 100_000)))


def unit(name: str) -> Unit:
    return Unit("patches", "1", (name,), {})


@pytest.mark.parametrize("fixture", ["bucket", "rgw_bucket"])
def test_a_missing_bucket_is_named(request: pytest.FixtureRequest, fixture: str) -> None:
    request.getfixturevalue(fixture)
    for create in (True, False):
        with pytest.raises(InputError, match="s3://nosuchbucket/x: there is no such bucket"):
            open_root("s3://nosuchbucket/x", create=create)


@pytest.mark.parametrize("name", ["a_B", "x", "a b"])
def test_a_name_that_no_bucket_can_have_is_named(rgw_bucket: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"s3://{name}/x: .*correct the address"):
        open_root(f"s3://{name}/x")


@pytest.fixture
def fresh_s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An S3 client made anew from an environment that the test may change."""
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "_cache", {})
    return monkeypatch


def test_missing_credentials_are_named(fresh_s3: pytest.MonkeyPatch) -> None:
    fresh_s3.delenv("AWS_ACCESS_KEY_ID")
    fresh_s3.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"no usable credentials.*set AWS_ACCESS_KEY_ID"):
        open_root(f"s3://results/{uuid4().hex}")


def test_a_server_that_is_not_there_is_named(fresh_s3: pytest.MonkeyPatch) -> None:
    fresh_s3.setenv("AWS_ENDPOINT_URL", "http://me:password@127.0.0.1:9")  # nobody listens there
    fresh_s3.setattr(roots, "S3_TRIES", 2)
    with pytest.raises(InputError, match=r"cannot be reached.*check the address") as caught:
        open_root(f"s3://results/{uuid4().hex}")
    assert "password" not in str(caught.value)


def test_what_fsspec_is_set_to_goes_before_our_settings(fresh_s3: pytest.MonkeyPatch) -> None:
    ours = filesystem("s3://results/x")[0].config_kwargs
    assert (ours["read_timeout"], ours["retries"]["total_max_attempts"]) == (roots.S3_TIMEOUT, 1)
    fresh_s3.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 2}})
    set_by_user = filesystem("s3://results/x")[0].config_kwargs
    assert set_by_user == {**ours, "read_timeout": 2}


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_credentials_in_an_address_are_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(InputError, match="do not put passwords, tokens") as caught:
        open_root(f"{scheme}://AKEY:hunter2@bucket/x")
    assert "AKEY" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/results", "https://example.org/results", "github://org:repo@/mined",
        "zip://mined::file:///tmp/a.zip", "simplecache::s3://bucket/mined", "ftp://host/mined",
        "data:text/plain,mined", "gs://bucket/mined", "abfs://container/mined", "hf://datasets/a/b",
        "dir://mined", "nosuch://a/b",
    ],
)  # fmt: skip
def test_protocols_that_cannot_keep_results_are_refused(url: str) -> None:
    for create in (True, False):
        with pytest.raises(InputError) as caught:
            open_root(url, create=create)
        protocol = url.split(":/")[0].removesuffix(":text/plain,mined")
        assert str(caught.value) == (
            f"{protocol}:// cannot keep results, which need files that one of several runs alone "
            "can create; give a local folder, or an address such as s3://bucket/prefix"
        )


def test_a_server_without_conditional_writes_is_named() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(moto_server())
        server.make_bucket("unconditional")
        endpoint = server.environment["AWS_ENDPOINT_URL"]
        proxy = stack.enter_context(FaultyProxy(endpoint, {"501": 1.0}))
        with server.with_changes(AWS_ENDPOINT_URL=proxy.endpoint).used():
            root = open_root("s3://unconditional/mined")
            root.write_bytes("plans/a.json", b"{}")
            with pytest.raises(InputError) as caught:
                root.create_bytes("run.json", b"{}")
            findings = {one.name: one for one in check_storage("s3://unconditional/mined")}
    sentence = (
        "s3://unconditional/mined: the server does not know how to create a file only where there "
        "is none (it answers 501 to If-None-Match), which publishing a result needs; give a place "
        "on another server"
    )
    assert str(caught.value) == sentence
    assert [name for name, one in findings.items() if not one.holds] == ["Conditional create"]
    assert findings["Conditional create"].sentence == sentence


READ_ONLY = {
    "Version": "2012-10-17",
    "Statement": {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": "arn:aws:s3:::sealed/*",
    },
}


@pytest.fixture(scope="module")
def readonly(rgw: S3Server) -> str:
    """A bucket with a finished unit, in which nothing may be written any more."""
    rgw.make_bucket("sealed")
    with rgw.used():
        root = open_root("s3://sealed/root")
        complete(root, unit("a"), lambda a: a.write_bytes("a", b"1"))
        root.fs.call_s3("put_bucket_policy", Bucket="sealed", Policy=json.dumps(READ_ONLY))
    return "s3://sealed/root"


def test_a_read_only_bucket_can_be_read_and_says_so_when_written(
    rgw_bucket: str, readonly: str
) -> None:
    root = open_root(readonly)
    says = f"{readonly}: the server lets these credentials read but not write here"
    for write in (root.write_new, root.write_bytes, root.create_bytes):
        with pytest.raises(InputError, match=says):
            write("a", b"1")
    with pytest.raises(InputError, match=says):
        complete(root, unit("b"), lambda a: a.write_bytes("b", b"1"))
    assert published(root, "patches") == {unit("a").key}
    verify(root, complete(root, unit("a"), lambda a: None))


def of_another_user(rgw: S3Server, user: str) -> S3Server:
    """The server, reached as a new user with a bucket of the same name."""
    key, secret = f"{user}-key", f"{user}-hidden"
    rgw.admin(
        *("user", "create", f"--uid={user}", f"--display-name={user}"),
        *(f"--access-key={key}", f"--secret-key={secret}"),
    )
    reached = rgw.with_changes(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
    reached.make_bucket(user)
    return reached


def test_a_key_withdrawn_in_the_middle_is_said_and_the_next_run_goes_on(rgw: S3Server) -> None:
    reached = of_another_user(rgw, "leaver")

    def withdraw(attempt: Attempt) -> None:
        attempt.write_bytes("a", b"1")
        rgw.admin("key", "rm", "--uid=leaver", "--key-type=s3", "--access-key=leaver-key")
        attempt.write_bytes("b", b"2")

    with reached.used():
        root = open_root("s3://leaver/root")
        first = complete(root, unit("a"), lambda a: a.write_bytes("a", b"1"))
        with pytest.raises(InputError) as caught:
            complete(root, unit("b"), withdraw)
        assert "the server does not accept these credentials" in str(caught.value)
        assert "what is finished is kept" in str(caught.value)
        assert "leaver-hidden" not in str(caught.value)
        with pytest.raises(InputError, match="the server"):
            root.exists("manifests")  # a HEAD, to which S3 says no more than 403
    renewed = ("--access-key=leaver-2", "--secret-key=leaver-hidden-2")
    rgw.admin("key", "create", "--uid=leaver", "--key-type=s3", *renewed)
    again = reached.with_changes(
        AWS_ACCESS_KEY_ID="leaver-2", AWS_SECRET_ACCESS_KEY="leaver-hidden-2"
    )
    with again.used():
        root = open_root("s3://leaver/root")
        assert published(root, "patches") == {unit("a").key}
        assert complete(root, unit("a"), lambda a: None) == first
        verify(root, complete(root, unit("b"), lambda a: a.write_bytes("b", b"2")))


def test_a_full_bucket_is_said_and_the_next_run_goes_on(rgw: S3Server) -> None:
    reached = of_another_user(rgw, "hoarder")
    quota = ("quota", "set", "--quota-scope=user", "--uid=hoarder", "--max-size=200000")
    rgw.admin(*quota)
    rgw.admin("quota", "enable", "--quota-scope=user", "--uid=hoarder")
    with reached.used():
        root = open_root("s3://hoarder/root")
        with pytest.raises(InputError, match="no space is left to write to; free some"):
            root.write_new("large", bytes(300_000))
        rgw.admin("quota", "disable", "--quota-scope=user", "--uid=hoarder")
        root.write_new("large", bytes(300_000))


def test_wrong_credentials_are_named(rgw: S3Server) -> None:
    for change in ({"AWS_ACCESS_KEY_ID": "stranger"}, {"AWS_SECRET_ACCESS_KEY": "wrong-hidden"}):
        with rgw.with_changes(**change).used():
            with pytest.raises(InputError, match="does not accept these credentials") as caught:
                open_root(f"s3://results/{uuid4().hex}")
            assert not re.search("hidden|tests-secret", str(caught.value))
