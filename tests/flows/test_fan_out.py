"""What the parent of child runs makes of their ends; a thread stands in for the pool's workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from threading import Event, Timer
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Pending, Running
from pydantic import BaseModel
from relay import relayed
from stored import attempts, manifests

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import CorruptFileError
from diffmining_core.store.units import Unit
from flows import fan_out as fanning
from flows.checks import check_places
from flows.fan_out import BatchFlow, Work, decided, fan_out, planned_there, root_tag, run_missing
from flows.orphans import NO_HEARTBEAT
from flows.parameters import IndexParameters
from tasks.units import CorruptUnitsError, Done, fill, stage_task

STAGE = "work"
WRONG: dict[str, Exception] = {}
"""By the name of a unit, why it cannot be made."""


def work_of(names: Sequence[str]) -> list[Work[str]]:
    return [Work(Unit(STAGE, "1", (), {"name": name}), f"shard {name}", name) for name in names]


class Batch(BaseModel):
    root: str
    names: list[str]


@stage_task(STAGE)
def make(root: str, name: str) -> Done:
    def produce(attempt: Any) -> None:
        if name in WRONG:
            raise WRONG[name]
        attempt.write_bytes("work", name.encode())
        attempt.counts["images"] = 1

    return fill(root, work_of([name])[0].unit, produce)


@flow(name="work-batch", persist_result=False)
def work_batch(parameters: Batch) -> list[Done]:
    def run(name: str) -> State[Done]:
        return make(parameters.root, name, return_state=True)

    return run_missing(work_of(parameters.names), run)


@flow(name="work")
def parent(root: str, names: Sequence[str], per_run: int = 2) -> list[Done]:
    work = work_of(names)
    there = planned_there(root, STAGE, [one.unit.key for one in work])
    batch: BatchFlow[str] = BatchFlow(
        work_batch, lambda some: Batch(root=root, names=list(some)), per_run
    )
    return fan_out(root, work, there, batch, "deployment")


def made(root: Path) -> Counter[str]:
    """How often each unit of the root was made."""
    names = {unit: str(one.parameters["name"]) for unit, one in manifests(root).items()}
    return Counter({names.get(unit, unit): count for unit, count in attempts(root).items()})


Serve = Callable[[FlowRun, list[str]], "State[Any] | None"]
"""What becomes of a run of these units instead of being run; it is run where this says None."""


class Pool:
    """The server's side of a pool of one GPU, and the runs of the batch flow that a test makes."""

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        self.client = client
        self.older: set[UUID] = set()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=1))
        self.deployment = client.create_deployment(
            client.create_flow(work_batch), work_batch.name, work_pool_name=name
        )
        self.older = {run.id for run in self.runs()}

    def runs(self) -> list[FlowRun]:
        found = self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(deployment_id={"any_": [self.deployment]})  # type: ignore[arg-type]
        )
        return [run for run in found if run.id not in self.older]

    def units(self) -> list[list[str]]:
        """The units of each run, as they were made."""
        runs = sorted(self.runs(), key=lambda run: (run.created, run.id))
        return [run.parameters["parameters"]["names"] for run in runs]

    def submit(self, root: Path, names: list[str]) -> FlowRun:
        """A run that another parent has made."""
        return run_deployment(
            self.deployment,
            parameters={"parameters": {"root": str(root), "names": names}},
            timeout=0,
            tags=[root_tag(str(root)), *(one.tag for one in work_of(names))],
            idempotency_key=str(uuid4()),
        )  # type: ignore[return-value]

    @contextmanager
    def served(self, serve: Serve = lambda run, names: None) -> Iterator[None]:
        """Inside, runs that are scheduled are served one after the other."""
        stop = Event()

        def look() -> None:
            for run in reversed(self.runs()):
                if run.state and run.state.is_scheduled():
                    with suppress(ObjectNotFound):  # deleted by a test
                        self._serve(run, serve)

        def look_on() -> None:
            try:
                while not stop.wait(0.05):
                    look()
            finally:  # nobody serves any more: a parent that waits need not wait for ever
                self.close()
                while not stop.wait(0.5):
                    self.close()

        with ThreadPoolExecutor(1) as thread:
            looking = thread.submit(copy_context().run, look_on)  # with Prefect's settings
            try:
                yield
            finally:
                stop.set()
                looking.result()

    def close(self) -> None:
        """Cancels what is under way."""
        for run in self.runs():
            if run.state and not run.state.is_final():
                self.client.set_flow_run_state(run.id, Cancelled(message="Not served."), force=True)

    def _serve(self, run: FlowRun, serve: Serve) -> None:
        self.client.set_flow_run_state(run.id, Pending())
        batch = Batch(**run.parameters["parameters"])
        if (end := serve(run, batch.names)) is None:
            run_flow(
                work_batch,
                flow_run=self.client.read_flow_run(run.id),
                parameters={"parameters": batch},
                return_type="state",
            )
        else:
            self.client.set_flow_run_state(run.id, Running())
            self.client.set_flow_run_state(run.id, end, force=True)


@pytest.fixture
def pool(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(fanning, "POLL_SECONDS", 0.1)
    with get_client(sync_client=True) as client:
        yield Pool(client, f"tests-{uuid4().hex[:8]}")
    WRONG.clear()


def test_runs_share_the_units_a_window_of_them_at_a_time(pool: Pool, tmp_path: Path) -> None:
    at_once = []

    def under_way() -> int:
        return sum(not run.state.is_final() for run in pool.runs() if run.state)

    def count(run: FlowRun, names: list[str]) -> None:
        end = time.monotonic() + 60
        while under_way() < 2 and names != ["g"] and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)  # for one more to come that should not
        at_once.append(under_way())

    names = list("abcdefg")
    with pool.served(count):
        done = parent(str(tmp_path), names)
    assert [unit.key for unit in done] == [one.unit.key for one in work_of(names)]
    assert all(unit.computed and unit.counts == {"images": 1} for unit in done)
    assert pool.units() == [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]
    assert at_once == [2, 2, 2, 1], "twice what the pool runs at once"
    assert made(tmp_path) == dict.fromkeys(names, 1)
    assert not any(unit.computed for unit in parent(str(tmp_path), names))
    assert len(pool.runs()) == 4


def test_a_unit_that_fails_is_named_and_a_rerun_makes_only_it(pool: Pool, tmp_path: Path) -> None:
    WRONG["b"] = InputError("3 of 4 images cannot be used")
    with pool.served():
        with pytest.raises(RuntimeError, match=r"1 of 5 units failed: shard b \(work/.*3 of 4 ima"):
            parent(str(tmp_path), list("abcde"))
        assert made(tmp_path).keys() - {"b"} >= set("acde")
        WRONG.clear()
        done = parent(str(tmp_path), list("abcde"))
    assert [unit.computed for unit in done] == [False, True, False, False, False]
    assert pool.units()[-1] == ["b"]


def test_what_a_crash_leaves_is_made_alone_and_what_always_crashes_is_given_up(
    pool: Pool, tmp_path: Path
) -> None:
    def crash(run: FlowRun, names: list[str]) -> State[Any] | None:
        if "b" not in names:
            return None
        if names != ["b"]:
            make.fn(str(tmp_path), names[0])
        return Crashed(message="Process exited with status code: -9.")

    with (
        pool.served(crash),
        pytest.raises(RuntimeError, match=r"1 of 3 units failed: shard b \(.*\) is Crashed: .* -9"),
    ):
        parent(str(tmp_path), list("abc"), 3)
    assert sorted(pool.units()) == [["a", "b", "c"], ["b"], ["b"], ["c"]]
    assert made(tmp_path) == {"a": 1, "c": 1}


def test_runs_that_are_under_way_are_waited_for_and_not_made_again(
    pool: Pool, tmp_path: Path
) -> None:
    outlived = pool.submit(tmp_path, ["b", "c"])
    elsewhere = pool.submit(tmp_path / "elsewhere", ["a"])
    later: list[FlowRun] = []

    def submit_more(run: FlowRun, names: list[str]) -> None:
        if names == ["a"] and run.id != elsewhere.id and not later:
            later.append(pool.submit(tmp_path, ["f"]))

    with pool.served(submit_more):
        done = parent(str(tmp_path), list("abcdef"), 1)
    assert len(done) == 6
    assert made(tmp_path / "elsewhere") == {"a": 1}
    ours = [names for names in pool.units() if names != ["a"]]
    assert sorted(ours) == [["b", "c"], ["d"], ["e"], ["f"]]
    assert pool.client.read_flow_run(outlived.id).state_name == "Completed"
    assert {key: count for key, count in made(tmp_path).items() if len(key) == 1} == dict.fromkeys(
        "abcdef", 1
    )


def test_a_run_that_seems_dead_for_a_while_is_not_made_again(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanning, "SURE_SECONDS", 2.0)
    dead: State[Any] = Crashed(message=f"{NO_HEARTBEAT} for 90 s.")

    def seem_dead(run: FlowRun, names: list[str]) -> State[Any] | None:
        if names == ["a"] and run.run_count == 0:
            pool.client.set_flow_run_state(run.id, dead, force=True)
            time.sleep(1)
            pool.client.set_flow_run_state(run.id, Pending(), force=True)
        return dead if len(pool.units()) == 2 and names == ["b"] else None

    with pool.served(seem_dead):
        parent(str(tmp_path), list("ab"), 1)
    assert pool.units() == [["a"], ["b"], ["b"]], "the first lived, the second did not"
    assert made(tmp_path) == {"a": 1, "b": 1}


def test_units_of_a_run_that_was_cancelled_or_deleted_are_named(pool: Pool, tmp_path: Path) -> None:
    def end(run: FlowRun, names: list[str]) -> State[Any] | None:
        if names == ["b"]:
            return Cancelled(message="By hand.")
        if names == ["c"]:
            pool.client.delete_flow_run(run.id)
            return None
        return None

    with pool.served(end), pytest.raises(RuntimeError, match="2 of 3 units failed") as raised:
        parent(str(tmp_path), list("abc"), 1)
    assert "shard b" in str(raised.value) and "shard c" in str(raised.value)
    assert "is Cancelled: By hand." in str(raised.value)
    assert made(tmp_path) == {"a": 1}
    assert pool.units() == [["a"], ["b"]]


def test_damage_that_a_run_met_reaches_the_parent_which_has_it_made_again(
    pool: Pool, tmp_path: Path
) -> None:
    WRONG["b"] = CorruptFileError("index/0123/shard.parquet is corrupt", "index", "0123")
    met: list[CorruptFileError] = []

    @flow(name="mending")
    def mending() -> list[Done]:
        try:
            return list(parent.fn(str(tmp_path), ["b"]))
        except CorruptUnitsError as error:
            met.extend(error.damaged)
            WRONG.clear()
            return list(parent.fn(str(tmp_path), ["b"]))

    with pool.served():
        (done,) = mending()
    assert done.computed
    assert [(error.stage, error.key) for error in met] == [("index", "0123")]
    assert pool.units() == [["b"], ["b"]], "not answered with the run that failed"


def test_a_server_that_goes_away_is_waited_for(
    pool: Pool, tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[str] = []

    with relayed(prefect_api) as relay:

        def cut(run: FlowRun, names: list[str]) -> None:
            if not at:
                at.append(names[0])
                relay.cut()
                Timer(1.5, relay.mend).start()

        with pool.served(cut), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            done = parent(str(tmp_path), list("abcdefgh"))
    assert at
    assert len(done) == 8
    assert made(tmp_path) == dict.fromkeys("abcdefgh", 1)


def test_a_deployment_that_is_missing_is_named(prefect_api: str, tmp_path: Path) -> None:
    @flow(name="of-nobody")
    def nobody(parameters: Batch) -> list[Done]:
        return []

    batch: BatchFlow[str] = BatchFlow(
        nobody, lambda some: Batch(root=str(tmp_path), names=list(some)), 2
    )

    @flow(name="missing")
    def missing() -> None:
        fan_out(str(tmp_path), work_of(["a"]), set(), batch, "deployment")

    with pytest.raises(InputError, match=r"of-nobody/of-nobody, .* run `diffmining bootstrap`"):
        missing()


def test_a_run_that_a_worker_started_fans_out_and_wants_absolute_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relative = IndexParameters(dataset="photos", root="s3://results/mined")
    check_places(relative)
    assert (decided("auto"), decided("deployment")) == ("inline", "deployment")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    assert (decided("auto"), decided("inline")) == ("deployment", "inline")
    with pytest.raises(InputError, match=r"dataset must be an absolute path or a URL .*'photos'"):
        check_places(relative)
    check_places(relative.model_copy(update={"dataset": "/home/me/photos"}))
