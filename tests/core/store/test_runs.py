from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import Root
from diffmining_core.store.runs import (
    RUN_FORMAT,
    Failure,
    RunRecord,
    failures,
    note_failure,
    open_run,
    plan_stage,
    planned,
    read_run,
)
from diffmining_core.store.units import Unit, canonical_json

THREADS = 12

UNIT = Unit("patches", "1", ("maps",), {"size": 64})


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("a", b"1")


def test_the_last_plan_of_a_stage_counts(root: Root) -> None:
    assert planned(root, "patches") is None
    plan_stage(root, "patches", ["c"])
    plan_stage(root, "patches", ["b", "a", "b"])
    plan = planned(root, "patches")
    assert plan is not None
    assert plan[0] == {"a", "b"}
    assert plan[1] > 1.7e9
    assert planned(root, "typicality") is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"keys": 1, "planned": "x"}',
        b'{"keys": [1, "a"], "planned": "2026-11-21T02:00:00+00:00"}',
        b'{"keys": ["a"], "planned": "0001-01-01T00:00:00"}',
        b'{"keys": ["a"], "planned": 1e999}',
    ],
)
def test_a_plan_that_cannot_be_read_is_none(root: Root, body: bytes) -> None:
    root.write_bytes("plans/patches.json", body)
    assert planned(root, "patches") is None


def test_a_failure_counts_until_its_unit_is_done(root: Root) -> None:
    assert failures(root, "patches") == {}
    note_failure(root, "patches", UNIT.key, Failure("first"))
    of_map = Failure("no map of “x”", ("typicality", "ab"), "2026-11-21T02:00:00+00:00")
    note_failure(root, "patches", UNIT.key, of_map)
    note_failure(root, "patches", "0" * 32, Failure("bad"))
    found = failures(root, "patches")
    assert found.keys() == {UNIT.key, "0" * 32}
    assert found[UNIT.key] == of_map
    assert (found["0" * 32].reason, found["0" * 32].damaged) == ("bad", None)
    assert found["0" * 32].noted > "2026"
    complete(root, UNIT, produce)
    assert failures(root, "patches").keys() == {"0" * 32}


def test_a_note_that_cannot_be_read_is_no_obstacle(root: Root) -> None:
    root.write_new("failures/patches/a.json", b"[" * 100_000)
    root.write_new("failures/patches/b.json/inner", b"a folder")
    found = failures(root, "patches")
    assert {key: one.reason for key, one in found.items()} == {
        "a": "the note of the reason cannot be read"
    }


def test_a_root_belongs_to_one_run(root: Root) -> None:
    open_run(root, {"dataset": "s3://a/b", "model": "tiny"})
    complete(root, UNIT, produce)
    open_run(root, {"model": "tiny", "dataset": "s3://a/b"})
    with pytest.raises(InputError) as caught:
        open_run(root, {"dataset": "/other", "model": "tiny"})
    assert str(caught.value) == (
        f"root {root.url} holds the results of dataset s3://a/b; this run asks for dataset /other; "
        "give another root"
    )
    with pytest.raises(InputError, match=r"model tiny; this run asks for model \(none\)"):
        open_run(root, {"dataset": "s3://a/b"})


def test_a_place_with_other_files_is_no_root(root: Root) -> None:
    root.write_new("lost+found/1", b"")
    root.write_new(".DS_Store", b"")
    root.write_new("holiday.jpg", b"")
    with pytest.raises(InputError, match=r"holds files that are no run's results \(holiday.jpg\)"):
        open_run(root, {"dataset": "a"})
    assert not root.exists("run.json")
    root.fs.rm(root.path_of("holiday.jpg"))
    open_run(root, {"dataset": "a"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"name": "npm"}',
        b'{"format": "2", "identity": {}}',
        b'{"format": 0, "identity": {}}',
        b'{"format": true, "identity": {}}',
        b'{"format": 2, "identity": []}',
        b'{"format": 2, "identity": {"dataset": 1}}',
    ],
)
def test_a_strange_run_file_is_named(root: Root, body: bytes) -> None:
    root.write_new("run.json", body)
    with pytest.raises(InputError, match=r"run.json cannot be read as the record of a run"):
        open_run(root, {})


def test_results_of_a_newer_version_are_refused_by_name(root: Root) -> None:
    root.write_new("run.json", canonical_json({"format": 99, "dataset": ["another layout"]}))
    with pytest.raises(InputError) as caught:
        open_run(root, {"dataset": "a"})
    assert str(caught.value) == (
        f"{root.url} holds results of format 99, which a newer diffmining stored; this version "
        f"knows formats up to {RUN_FORMAT}: upgrade it, or give another root"
    )
    with pytest.raises(InputError, match="a newer diffmining stored"):
        read_run(root)


def test_results_of_an_older_version_are_read_and_not_added_to(root: Root) -> None:
    record = {"format": RUN_FORMAT - 1, "identity": {"dataset": "a"}}
    root.write_new("run.json", canonical_json(record))
    assert read_run(root) == RunRecord({"dataset": "a"}, RUN_FORMAT - 1)
    with pytest.raises(InputError) as caught:
        open_run(root, {"dataset": "a"})
    assert str(caught.value) == (
        f"{root.url} holds results of format 1, which an older diffmining stored; this version "
        "stores format 2 and leaves older results as they are: mine again into a new root"
    )


def test_of_twelve_runs_one_claims_the_root(root: Root) -> None:
    start = threading.Barrier(THREADS)

    def claim(thread: int) -> Any:
        start.wait()
        try:
            open_run(root, {"dataset": f"d{thread % 4}"})
        except InputError as error:
            return str(error)
        complete(root, Unit("patches", "1", (str(thread),), {}), produce)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = list(pool.map(claim, range(THREADS)))
    assert outcomes.count(None) == 3  # those that ask for the winner's dataset
    assert all("holds the results of dataset d" in o for o in outcomes if o is not None)
