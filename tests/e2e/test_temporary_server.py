"""The server that a command starts for itself: behind a proxy, and where it cannot start."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import uuid4

import pytest
from commands import diffmining, refused
from faulty_proxy import FaultyProxy
from PIL import Image
from s3_servers import S3Server, moto_server

from diffmining_core.store.roots import open_root

BUCKET = f"results-{uuid4().hex}"
"""Of its own: moto's servers of one process share their buckets."""

CLOSED = "http://127.0.0.1:9"
"""A proxy that is not there."""

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    for label in ("ada", "bob"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (64, 64), (80 * number, 90, 100)).save(folder / f"{number}.png")
    return str(tmp_path / "photos")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with ExitStack() as stack:
        server = stack.enter_context(moto_server())
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(autouse=True)
def no_server_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def newer_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('0123456789ab')")


def no_database(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (newer_database, "(Can't locate revision identified by '0123456789ab')"),
        (no_database, "file is not a database"),
    ],
)
def test_a_server_that_ends_at_its_start_is_one_sentence(
    dataset: str, tmp_path: Path, write: object, reason: str
) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    assert callable(write)
    write(home / "prefect.db")
    ended = diffmining(
        "index", "--dataset", dataset, "--root", str(tmp_path / "mined"), PREFECT_HOME=str(home)
    )
    said = refused(ended.returncode, ended.stderr)
    assert said.startswith("diffmining: Prefect's temporary server ended at its start (")
    assert reason in said
    assert f"if a newer Prefect has used {home}, set PREFECT_HOME to another folder" in said
    assert ended.stderr.count("Starting temporary server") == 1


def test_no_proxy_stands_before_this_machine(
    dataset: str, server: S3Server, tmp_path: Path
) -> None:
    """Neither before the Prefect server nor before an S3 server on loopback."""
    proxies = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    url = f"s3://{BUCKET}/{uuid4().hex}"
    with server.used():
        ended = diffmining(
            "index", "--dataset", dataset, "--root", url,
            **dict.fromkeys(proxies, CLOSED), NO_PROXY="example.org", no_proxy="",
            PREFECT_HOME=str(tmp_path / "prefect"),
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "4 images of 2 labels" in ended.stdout
        assert open_root(url, create=False).exists("run.json")


def test_a_store_without_conditional_writes_is_named_before_anything_is_indexed(
    dataset: str, server: S3Server
) -> None:
    with (
        FaultyProxy(server.environment["AWS_ENDPOINT_URL"], {"501": 1.0}) as proxy,
        server.with_changes(AWS_ENDPOINT_URL=proxy.endpoint).used(),
    ):
        ended = diffmining("index", "--dataset", dataset, "--root", f"s3://{BUCKET}/{uuid4().hex}")
    said = refused(ended.returncode, ended.stderr)
    assert "the server does not know how to create a file only where there is none" in said
    assert "Errno 38" not in ended.stderr
