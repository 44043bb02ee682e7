from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import (
    RUN_FORMAT,
    Failure,
    RunRecord,
    note_failure,
    open_run,
    plan_stage,
)
from diffmining_core.store.status import StageStatus, current_root, run_root, run_status
from diffmining_core.store.units import Unit

PLANNED = 1_000_000.0
"""When the stages of `paced` were planned, in seconds since 1970."""


def unit(stage: str, number: int, options: int = 0) -> Unit:
    return Unit(stage, "1", (f"images {number}",), {"options": options})


def publish(root: Root, made: Unit, **counts: int) -> None:
    def produce(attempt: Attempt) -> None:
        attempt.write_bytes("a", b"1")
        attempt.counts.update(counts)

    complete(root, made, produce)


def plan(root: Root, stage: str, numbers: range) -> None:
    plan_stage(root, stage, [unit(stage, number).key for number in numbers])


def status(root: Root, now: float | None = None) -> dict[str, StageStatus]:
    return {stage.stage: stage for stage in run_status(root, now or time.time())}


def test_planned_is_done_failed_and_missing(root: Root) -> None:
    plan(root, "patches", range(6))
    for number in range(3):
        publish(root, unit("patches", number))
    publish(root, unit("patches", 0, options=1))
    for number in (2, 3):
        note_failure(root, "patches", unit("patches", number).key, Failure("no map"))
    note_failure(root, "patches", unit("patches", 99).key, Failure("of another plan"))
    (patches,) = run_status(root, time.time())
    assert (patches.planned, patches.done, patches.missing, patches.others) == (6, 3, 2, 1)
    assert patches.failed == {unit("patches", 3).key: "no map"}
    assert patches.set_aside is None


def test_without_a_plan_all_that_is_published_is_done(root: Root) -> None:
    publish(root, unit("patches", 1))
    note_failure(root, "patches", unit("patches", 2).key, Failure("no map"))
    found = status(root)["patches"]
    assert (found.planned, found.done, found.missing, found.others) == (None, 1, 0, 0)
    assert list(found.failed.values()) == ["no map"]
    assert found.pace.seconds_left is None


def test_stages_come_in_the_datas_order_and_unknown_ones_last(root: Root) -> None:
    assert run_status(root, time.time()) == []
    publish(root, unit("zoom", 1))
    publish(root, unit("typicality", 1))
    plan(root, "clusters", range(1))
    note_failure(root, "patches", unit("patches", 1).key, Failure("no map"))
    publish(root, unit("index", 1))
    assert list(status(root)) == ["index", "typicality", "patches", "clusters", "zoom"]


def test_images_set_aside_are_counted_once(root: Root) -> None:
    publish(root, unit("index", 1), set_aside=2)
    publish(root, unit("index", 2), set_aside=3)
    for options in (0, 1):  # the same images under two models
        publish(root, unit("typicality", 1, options), set_aside=4)
    publish(root, unit("typicality", 2), set_aside=1)
    found = status(root)
    assert (found["index"].set_aside, found["typicality"].set_aside) == (5, 5)


def test_the_datasets_manifest_spares_reading_the_shards(root: Root) -> None:
    plan(root, "dataset", range(1))
    publish(root, unit("dataset", 0), set_aside=7, declared=0)
    publish(root, unit("index", 1))
    publish(root, unit("typicality", 1))
    for stage in ("index", "typicality"):
        root.write_bytes(f"manifests/{stage}/{unit(stage, 1).key}.json", b"unread")
    found = status(root)
    assert (found["index"].set_aside, found["typicality"].set_aside) == (7, 0)


def test_a_manifest_that_cannot_be_read_does_not_stop_it(root: Root) -> None:
    publish(root, unit("index", 1), set_aside=2)
    publish(root, unit("index", 2), set_aside=3)
    root.write_bytes(f"manifests/index/{unit('index', 1).key}.json", b"{")
    root.write_bytes("plans/index.json", b"{")
    found = status(root)["index"]
    assert (found.planned, found.done, found.set_aside) == (None, 2, 3)


@pytest.fixture
def paced(tmp_path: Path) -> Root:
    """A root at which 6 units of 10 were published, the first before the plan."""
    root = open_root(str(tmp_path))
    plan(root, "patches", range(10))
    os.utime(tmp_path / "plans" / "patches.json", (PLANNED, PLANNED))
    for number, seconds in enumerate((-5000, 100, 200, 300, 400, 500)):
        publish(root, made := unit("patches", number))
        path = tmp_path / "manifests" / "patches" / f"{made.key}.json"
        os.utime(path, (PLANNED + seconds, PLANNED + seconds))
    return root


def test_time_left_follows_from_the_last_results(paced: Root) -> None:
    pace = status(paced, now=PLANNED + 550)["patches"].pace
    assert (pace.state, pace.since) == ("running", PLANNED + 500)
    assert pace.per_hour == pytest.approx(36)
    assert pace.seconds_left == pytest.approx(400)


def test_without_new_results_it_is_not_running(paced: Root) -> None:
    assert status(paced, now=PLANNED + 799)["patches"].pace.state == "running"
    pace = status(paced, now=PLANNED + 801)["patches"].pace
    assert (pace.state, pace.since) == ("stopped", PLANNED + 500)
    assert pace.per_hour is None
    assert pace.seconds_left is None


def test_results_of_an_earlier_run_are_no_pace(paced: Root, tmp_path: Path) -> None:
    later = PLANNED + 10_000
    os.utime(tmp_path / "plans" / "patches.json", (later, later))
    pace = status(paced, now=later + 3600)["patches"].pace
    assert (pace.state, pace.since, pace.seconds_left) == ("waiting", later, None)


def test_a_slow_stage_is_given_time(paced: Root, tmp_path: Path) -> None:
    publish(paced, made := unit("patches", 9))
    path = tmp_path / "manifests" / "patches" / f"{made.key}.json"
    os.utime(path, (PLANNED + 4000, PLANNED + 4000))
    assert status(paced, now=PLANNED + 10_000)["patches"].pace.state == "running"


def test_only_the_last_fifty_results_make_the_rate(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    plan(root, "patches", range(61))
    os.utime(tmp_path / "plans" / "patches.json", (PLANNED, PLANNED))
    for number in range(60):  # ten in a second each, then fifty in ten seconds each
        publish(root, made := unit("patches", number))
        then = PLANNED + (number + 1 if number < 10 else 10 + 10 * (number - 9))
        os.utime(tmp_path / "manifests" / "patches" / f"{made.key}.json", (then, then))
    pace = status(root, now=then)["patches"].pace
    assert pace.per_hour == pytest.approx(360)


def test_what_is_complete_is_finished(paced: Root) -> None:
    for number in range(10):
        publish(paced, unit("patches", number))
    found = status(paced)["patches"]
    assert (found.missing, found.pace.state) == (0, "finished")


def test_a_runs_root_is_known_by_its_file(root: Root, url: str) -> None:
    root.write_new("photo.jpg", b"1")
    with pytest.raises(InputError, match=r"holds no run's results.*give the root"):
        run_root(url)
    root.remove("photo.jpg")
    identity = {"dataset": "s3://a/b", "model": "tiny"}
    open_run(root, identity)
    assert run_root(url) == (root, RunRecord(identity, RUN_FORMAT))
    assert current_root(url) == root
    for body in (b"{", b"[]", b'{"format": 99, "identity": {}}'):
        root.write_bytes("run.json", body)
        with pytest.raises(InputError, match=r"cannot be read as the record|a newer diffmining"):
            run_root(url)


def test_a_root_of_an_older_version_is_shown_and_not_cleaned_up(root: Root, url: str) -> None:
    root.write_new("run.json", b'{"format": 1, "identity": {"dataset": "a"}}')
    assert run_root(url) == (root, RunRecord({"dataset": "a"}, 1))
    with pytest.raises(InputError, match=r"an older diffmining stored.*mine again into a new root"):
        current_root(url)
