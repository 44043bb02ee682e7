from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3_servers import S3Server

from diffmining_core.errors import InputError
from diffmining_core.store import roots
from diffmining_core.store.roots import open_root
from diffmining_core.store.storage_check import Finding, check_storage

NAMES = [
    "Write",
    "Read",
    "Replace",
    "List after write",
    "Conditional create",
    "Multipart",
    "Clock",
    "Delete",
]


def found(url: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_storage(url)}


def test_all_holds_on_every_storage_and_nothing_stays(url: str) -> None:
    findings = found(url)
    assert list(findings) == NAMES
    assert [finding.sentence for finding in findings.values() if not finding.holds] == []
    assert "exactly one won" in findings["Conditional create"].sentence
    assert open_root(url).names() == []


def test_what_lies_there_stays(url: str) -> None:
    root = open_root(url)
    root.write_new("photos/1.jpg", b"1")
    found(url)
    assert root.names() == ["photos"]
    assert root.read_bytes("photos/1.jpg") == b"1"


def test_folders_that_were_not_there_are_gone_again(tmp_path: Path) -> None:
    found(str(tmp_path / "new" / "place"))
    assert list(tmp_path.iterdir()) == []


def test_a_check_broken_off_cleans_up(url: str) -> None:
    checking = check_storage(url)
    next(checking)
    assert open_root(url).names() != []
    checking.close()
    assert open_root(url).names() == []


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("url", ["s3://nosuchbucket/x", "nosuch://a/b"])
def test_where_nothing_can_be_tried_is_said(url: str) -> None:
    with pytest.raises(InputError):
        found(url)


class Weak(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A memory of its own, in place of servers that keep less than S3 promises."""

    protocol = "weak"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("weak://")))


class LastWriterWins(Weak):
    """As servers that do not know If-None-Match."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, **options)


class ListsLate(Weak):
    """As S3 was before 2020."""

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return super().ls(path, detail, **options)[1:]


class LosesTheEnd(Weak):
    """As a server that joins all parts but the last."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value[: 10 * 2**20], mode, **options)


class HourAhead(Weak):
    """As a machine whose clock is an hour ahead of this one's."""

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return [
            {**info, "created": info.get("created", 0) + 3600}
            for info in super().ls(path, detail, **options)
        ]


class KeepsAll(Weak):
    """As a bucket that takes the order to delete and does not follow it, as s3fs reads it."""

    def rm(self, *arguments: Any, **options: Any) -> None:
        pass


class ReadsOld(Weak):
    """As a cache between a server and us."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if not self.exists(path):
            super().pipe_file(path, value, mode, **options)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (LastWriterWins, "Conditional create", "run only one at a time"),
        (ListsLate, "List after write", "1 files were written and 0 were listed"),
        (LosesTheEnd, "Multipart", "12000000 bytes were written"),
        (HourAhead, "Clock", "differ by 60 minutes"),
        (KeepsAll, "Delete", "still listed"),
        (ReadsOld, "Replace", "a file replaced with 1 still read b'0'"),
    ],
)
def test_what_a_weaker_storage_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: type[Weak], name: str, says: str
) -> None:
    fsspec.register_implementation("weak", kind, clobber=True)
    monkeypatch.setattr(roots, "PROTOCOLS", {*roots.PROTOCOLS, "weak"})
    monkeypatch.setattr(kind, "_cache", {})
    findings = found(f"weak://{uuid4().hex}")
    assert not findings[name].holds
    assert says in findings[name].sentence
    assert name in NAMES
    assert findings["Write"].holds
    assert findings["Read"].holds


def deny(rgw: S3Server, bucket: str, action: str) -> None:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": action,
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    fsspec.filesystem("s3").call_s3("put_bucket_policy", Bucket=bucket, Policy=policy)


def test_a_bucket_that_may_not_be_written_is_one_finding(rgw: S3Server) -> None:
    rgw.make_bucket("readonly")
    with rgw.used():
        deny(rgw, "readonly", "s3:PutObject")
        (finding,) = check_storage("s3://readonly/root")
    assert (finding.name, finding.holds) == ("Write", False)
    assert "no run can keep results here" in finding.sentence


def test_a_bucket_where_nothing_may_be_deleted_is_named(rgw: S3Server) -> None:
    rgw.make_bucket("keeping")
    with rgw.used():
        deny(rgw, "keeping", "s3:DeleteObject")
        findings = found("s3://keeping/root")
    assert [name for name in NAMES if not findings[name].holds] == ["Delete"]
    assert "gc" in findings["Delete"].sentence
