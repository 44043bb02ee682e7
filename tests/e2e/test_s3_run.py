"""The whole pipeline on a real S3 server: over a faulty network, and when it is refused midway."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from commands import mine_words, refused, started
from faulty_proxy import FaultyProxy
from s3_servers import S3Server
from stored import results, results_of

from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from flows.cli import app
from flows.mine import mine
from flows.parameters import MineParameters

Make = Callable[..., MineParameters]
FirstRun = tuple[Path, dict[str, Any], int]
Faulty = Callable[..., FaultyProxy]

FAULTS = {
    "500": 0.01, "503": 0.01, "reset": 0.01, "lost": 0.005, "held": 0.005, "cut": 0.005,
    "short": 0.005,
}  # fmt: skip
"""One request in twenty."""


NO_WRITING = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:PutObject"],
            "Resource": ["arn:aws:s3:::closing/*"],
        }
    ],
}


@pytest.fixture(autouse=True)
def downloads(prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models fetched from the bucket go to a cache of the test's own; a silent server is given up
    after 2 seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    soon = {"config_kwargs": {"read_timeout": 2}}
    monkeypatch.setenv("FSSPEC_S3", json.dumps(soon))
    monkeypatch.setitem(fsspec.config.conf, "s3", soon)
    yield


def test_dataset_and_results_on_s3_are_as_on_local_disk(
    rgw_bucket: str,
    dataset: Path,
    first_run: FirstRun,
    parameters: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = f"s3://{rgw_bucket}/{uuid4().hex}"
    s3 = fsspec.filesystem("s3")
    s3.put(f"{dataset}/", f"{place}/streets/", recursive=True)
    small = parameters(f"{place}/root", dataset=f"{place}/streets")
    app(mine_words(small), result_action="return_value")
    assert f"Open {place}/root/index.html" in capsys.readouterr().out
    content = ("finetune", "typicality", "patches", "features", "clusters")  # keyed by content
    expected = results_of(first_run[0], *content)
    found = results_of(f"{place}/root", *content)
    assert found.keys() == expected.keys()
    for stage in ("typicality", "patches"):
        there = {unit: files for unit, files in found.items() if unit.startswith(stage)}
        assert there == {unit: files for unit, files in expected.items() if unit.startswith(stage)}
    assert mine(small)["unet_forwards"] == 0


def test_a_faulty_network_changes_no_byte_of_the_results(
    faulty: Faulty, rgw: S3Server, dataset: Path, first_run: FirstRun, parameters: Make
) -> None:
    bucket = "results"
    proxy = faulty(FAULTS, seed=1, hold=4.0)
    root = f"s3://{bucket}/{uuid4().hex}"
    mine(parameters(root))
    assert sum(proxy.faults.values()) > 10
    assert len(proxy.faults) >= 4, "too few kinds of faults for this to show anything"
    with rgw.used():
        assert results(root) == results(first_run[0])


def test_credentials_that_expire_midway_end_the_run_in_a_sentence_and_the_next_goes_on(
    faulty: Faulty, first_run: FirstRun, parameters: Make
) -> None:
    proxy = faulty({})
    root = f"s3://results/{uuid4().hex}"
    small = parameters(root)
    run = started(small)
    opened = open_root(root)
    while not published(opened, "typicality"):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    proxy.refusal = (403, "ExpiredToken")
    output = run.communicate()[0]
    sentence = refused(run.returncode, output)
    assert "expired" in sentence
    assert "what is finished is kept" in sentence
    proxy.refusal = None
    there = published(opened, "typicality")
    mine(small)
    assert results(root) == results(first_run[0])
    assert there


def test_a_bucket_that_becomes_read_only_ends_the_run_in_a_sentence_and_the_next_goes_on(
    rgw: S3Server, first_run: FirstRun, parameters: Make
) -> None:
    rgw.make_bucket("closing")
    with rgw.used():
        small = parameters("s3://closing/root")
        run = started(small)
        opened = open_root(small.root)
        while not published(opened, "dataset"):
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.05)
        opened.fs.call_s3("put_bucket_policy", Bucket="closing", Policy=json.dumps(NO_WRITING))
        sentence = refused(run.wait(), run.communicate()[0])
        assert "read but not write" in sentence
        opened.fs.call_s3("delete_bucket_policy", Bucket="closing")
        mine(small)
        assert results(small.root) == results(first_run[0])
