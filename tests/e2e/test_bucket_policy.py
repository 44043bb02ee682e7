"""Least privilege on a real S3 server: what worker, operator and reader may do, and what they are
told where they may not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore.session
import pytest
from botocore.exceptions import ClientError
from commands import REPOSITORY
from s3_servers import S3Server
from stored import manifests

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import published, retract
from diffmining_core.store.roots import open_root
from flows.mine import mine
from flows.parameters import MineParameters
from flows.upkeep import gc, status, verify

APPLY = REPOSITORY / "infra" / "bucket-policy" / "apply"
BUCKET = "guarded"
ROLES = ("worker", "operator", "reader")

Make = Callable[..., MineParameters]
Keys = dict[str, S3Server]


@pytest.fixture(scope="module")
def keys(rgw: S3Server) -> Keys:
    """The server as each role reaches it, with a bucket whose policy the committed files make."""
    found = {}
    for role in ROLES:
        key, secret = f"{role}-key", f"{role}-secret"
        rgw.admin(
            "user", "create", f"--uid={role}", f"--display-name={role}",
            f"--access-key={key}", f"--secret-key={secret}",
        )  # fmt: skip
        found[role] = rgw.with_changes(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
    principals = [word for role in ROLES for word in (f"--{role}", f"arn:aws:iam:::user/{role}")]
    with rgw.used():
        for _ in range(2):  # the second time it is all there
            command = [sys.executable, str(APPLY), BUCKET, *principals, "--versioning"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return found


@pytest.fixture
def as_worker(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """s3:// with the worker's key, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with keys["worker"].used():
        yield


def client(server: S3Server) -> Any:
    """A plain S3 client."""
    session = botocore.session.Session()
    environment = server.environment
    session.set_credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    endpoint = environment["AWS_ENDPOINT_URL"]
    return session.create_client("s3", endpoint_url=endpoint, region_name="us-east-1")


def denied(request: Callable[..., Any], **what: Any) -> bool:
    """Whether the server refuses a request; one about several files, for all of them."""
    try:
        answer = request(Bucket=BUCKET, **what)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] == "AccessDenied")
    return bool(answer.get("Errors")) and not answer.get("Deleted")


KEPT = (
    "run/manifests/typicality/0.json", "manifests/typicality/0.json", "run/run.json",
    "run/retracted/typicality/0/1.json", "run/typicality/0/attempt-1/maps", "run/plans/index.json",
    "run/finetune/0/attempt-1/model.safetensors", "run/failures/index/0.json", "run/index.html",
)  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_a_worker_makes_results_and_deletes_none_an_operator_may(keys: Keys, name: str) -> None:
    worker, operator = client(keys["worker"]), client(keys["operator"])
    reader = client(keys["reader"])
    worker.put_object(Bucket=BUCKET, Key=name, Body=b"made")
    several = {"Objects": [{"Key": name}]}
    assert denied(worker.delete_object, Key=name)
    assert denied(worker.delete_objects, Delete=several)
    assert denied(reader.put_object, Key=name, Body=b"changed")
    assert denied(reader.delete_object, Key=name)
    assert denied(reader.delete_objects, Delete=several)
    assert reader.get_object(Bucket=BUCKET, Key=name)["Body"].read() == b"made"
    assert not denied(operator.delete_objects, Delete=several)


@pytest.mark.parametrize("root", ["", "run/", "fff/", "fine/finer/finest/"])
def test_a_worker_drops_the_checkpoints_of_a_finetuning(keys: Keys, root: str) -> None:
    worker = client(keys["worker"])
    name = f"{root}finetune/0/checkpoints/step-1/model.safetensors"
    worker.put_object(Bucket=BUCKET, Key=name, Body=b"made")
    assert not denied(worker.delete_objects, Delete={"Objects": [{"Key": name}]})


@pytest.mark.parametrize("role", ROLES)
def test_no_role_changes_the_bucket_or_removes_what_versioning_keeps(keys: Keys, role: str) -> None:
    s3, worker = client(keys[role]), client(keys["worker"])
    name = f"run/{role}.json"
    version = worker.put_object(Bucket=BUCKET, Key=name, Body=b"first")["VersionId"]
    worker.put_object(Bucket=BUCKET, Key=name, Body=b"overwritten")
    assert denied(s3.delete_object, Key=name, VersionId=version)
    assert denied(s3.delete_bucket_policy)
    assert denied(s3.put_bucket_policy, Policy="{}")
    assert denied(s3.put_bucket_versioning, VersioningConfiguration={"Status": "Suspended"})
    assert denied(s3.delete_bucket)
    operator = client(keys["operator"])  # gets an overwritten file back
    kept = operator.get_object(Bucket=BUCKET, Key=name, VersionId=version)
    assert kept["Body"].read() == b"first"


def test_a_whole_run_needs_no_more_than_a_workers_key_and_a_page_no_more_than_a_readers(
    keys: Keys,
    as_worker: None,
    prefect_api: str,
    parameters: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = f"s3://{BUCKET}/{uuid4().hex}"
    small = parameters(root, checkpoint_every=2)
    mine(small)
    left = client(keys["worker"]).list_objects_v2(Bucket=BUCKET, Prefix=root.split("/")[-1])
    assert [e["Key"] for e in left["Contents"] if "/checkpoints/" in e["Key"]] == []

    with keys["reader"].used():
        status(root)
        verify(root)
        page = open_root(root, create=False).read_bytes("index.html")
        with pytest.raises(InputError, match="read but not write"):
            open_root(root).write_new("note", b"not mine")
    assert "0 damaged" in capsys.readouterr().out
    assert page

    damaged = damage(keys["operator"], root)
    with pytest.raises(InputError, match=r"these credentials may not do; .* operator's") as refusal:
        mine(small)
    assert f"{root}/manifests/{damaged}.json" in str(refusal.value)
    with keys["operator"].used():
        opened, (stage, key) = open_root(root), damaged.split("/")
        retract(opened, stage, key)
        assert key not in published(opened, stage)
    with pytest.raises(OSError, match="could not be removed; check that you may delete"):
        gc(root, older_than="0s", delete=True)
    with keys["operator"].used():
        gc(root, older_than="0s", delete=True)
    assert capsys.readouterr().out.strip().endswith("removed.")


def damage(server: S3Server, root: str) -> str:
    """Cut a file of a patch table short and take back what is made of it, so that it is read again.

    The unit that is damaged.
    """
    made_of_it = ("selection", "features", "clusters", "evaluation", "signs", "report")
    with server.used():
        opened = open_root(root)
        there = manifests(root)
        patches = next(unit for name, unit in there.items() if name.startswith("patches/"))
        opened.write_new(f"{patches.attempt}/{min(patches.files)}", b"cut")
        for name in there:
            if name.split("/")[0] in made_of_it:
                opened.remove(f"manifests/{name}.json")
    return patches.unit


def test_the_policies_are_strict_json_and_name_no_account() -> None:
    for path in sorted(APPLY.parent.glob("*.json")):
        policy = json.loads(path.read_text())
        for statement in policy["Statement"]:
            assert not any(action.endswith("*") for action in statement["Action"]), path
            assert all(r.startswith("arn:aws:s3:::BUCKET") for r in statement["Resource"]), path
