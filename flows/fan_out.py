"""Who makes the units of a stage that are not there yet: this process, or runs on the gpu pool.

A batch flow makes a few units one after the other with one model in memory. `fan_out` calls it in
this process, or has its deployment run it on a work pool, where several workers share the batches.
The ledger alone tells what is done: neither a child run's state nor its result is taken for it.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect import Flow, get_client, get_run_logger, tags
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as own_deployment
from prefect.runtime import flow_run as own_run
from prefect.states import Cancelling
from pydantic import BaseModel

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import CorruptFileError, published, read_manifests
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import Failure, failures, plan_stage
from diffmining_core.store.units import Unit
from flows.orphans import seems_dead
from flows.parameters import TypicalityParameters
from tasks.board import Board, Row
from tasks.units import Done, Failures

POLL_SECONDS = 3.0
"""Between two looks at the child runs."""
SURE_SECONDS = 30.0
"""For so long a run seems dead before it is taken for that: one that lives says so meanwhile."""
PATIENCE_SECONDS = 900.0
"""For so long a server that does not answer is asked again."""
CRASHES = 2
"""How often a unit whose run crashed is given to another run."""
AT_ONCE = 16
"""Child runs at once where the pool has no limit."""
PAGE = 200
"""Flow runs that the server tells of at once."""

UNDER_WAY = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Fanout = Literal["inline", "deployment"]


@dataclass(frozen=True)
class Work(Generic[Item]):
    """A wanted unit, what a person calls it, and what its task needs."""

    unit: Unit
    name: str
    item: Item

    @property
    def tag(self) -> str:
        """On the run that makes it."""
        return f"{self.unit.stage}:{self.unit.key[:16]}"


@dataclass(frozen=True)
class BatchFlow(Generic[Item]):
    """A flow that makes a few units of a stage, and how many of them one run on a pool is given."""

    flow: Flow[[Any], Any]
    parameters: Callable[[Sequence[Item]], BaseModel]
    per_run: int


def decided(fanout: Literal["auto", "inline", "deployment"]) -> Fanout:
    """What `auto` means here: deployment in a run that a worker started."""
    if fanout != "auto":
        return fanout
    return "deployment" if own_deployment.id else "inline"


def run_missing(work: Sequence[Work[Item]], run: Callable[[Item], State[Done]]) -> list[Done]:
    """One `Done` for each unit, made here one after the other.

    `run` calls the stage's task and returns its state. A unit that fails does not stop the others;
    at the end the first failure is raised, with the names of all. Several processes at one root
    share the work: each takes the units in another order.
    """
    shuffled = list(work)
    random.SystemRandom().shuffle(shuffled)
    failed = Failures()
    done: dict[str, Done] = {}
    for one in shuffled:
        result = run(one.item).result(raise_on_failure=False)
        if isinstance(result, Done):
            done[one.unit.key] = result
        else:
            failed.add(one.unit, result, one.name)
    failed.raise_for(len(work))
    return [done[one.unit.key] for one in work]


def planned_there(root: str, stage: str, keys: Iterable[str]) -> set[str]:
    """Note the wanted units of a stage; returns the keys of those that are there."""
    opened = open_root(root)
    plan_stage(opened, stage, keys)
    return published(opened, stage)


def fan_out(
    root: str, work: Sequence[Work[Item]], there: set[str], batch: BatchFlow[Item], fanout: Fanout
) -> list[Done]:
    """One `Done` per unit, in order; only units whose keys are not `there` are made.

    The first failure is raised, with the names of all units that are missing in the end.
    """
    done = {one.unit.key: Done(one.unit.stage, one.unit.key, computed=False) for one in work}
    missing = [one for one in work if one.unit.key not in there]
    if missing:
        make = made_here if fanout == "inline" else made_on_pool
        done |= {unit.key: unit for unit in make(root, missing, batch)}
    return [done[one.unit.key] for one in work]


def shown_fan_out(
    parameters: TypicalityParameters,
    noun: str,
    work: Sequence[Work[Item]],
    batch: BatchFlow[Item],
    rows: Sequence[Row],
) -> list[Done]:
    """The same for all of a stage's units, planned here, with their table in the Prefect UI.

    noun: what a unit is of, such as "shard"; rows: one for each unit.
    """
    root, stage = parameters.root, work[0].unit.stage
    there = planned_there(root, stage, [one.unit.key for one in work])
    with Board(root, stage, noun, parameters.title, root_tag(root), rows, there):
        return fan_out(root, work, there, batch, decided(parameters.fanout))


def made_here(root: str, missing: Sequence[Work[Item]], batch: BatchFlow[Item]) -> list[Done]:
    """Make units in this process, by a run of the batch flow."""
    with tags(root_tag(root)):
        made: Any = batch.flow(batch.parameters([one.item for one in missing]))
    return list(made)


def made_on_pool(root: str, missing: Sequence[Work[Item]], batch: BatchFlow[Item]) -> list[Done]:
    """Have units made by runs of the batch flow's deployment; RuntimeError names what is missing.

    CorruptUnitsError if stored units that some of them need are damaged.
    """
    opened, stage = open_root(root), missing[0].unit.stage
    old = failures(opened, stage)
    with get_client(sync_client=True) as client:
        ends = PoolRuns(client, root, missing, batch).finish()
    there = published(opened, stage)
    noted = {key: why for key, why in failures(opened, stage).items() if why != old.get(key)}
    failed = Failures()
    for one in missing:
        if (key := one.unit.key) not in there:
            failed.add(one.unit, _error(noted.get(key), ends[key]), one.name)
    failed.raise_for(len(missing))
    keys = [one.unit.key for one in missing]
    return [
        Done(stage, manifest.key, True, manifest.seconds, dict(manifest.counts))
        for manifest in read_manifests(opened, stage, keys)
    ]


def _error(failure: Failure | None, end: str) -> Exception:
    """Why a unit is missing: what its task noted, or else how its run ended."""
    if failure is None:
        return RuntimeError(end)
    if failure.damaged is not None:
        return CorruptFileError(failure.reason, *failure.damaged)
    return RuntimeError(failure.reason)


class PoolRuns(Generic[Item]):
    """The child runs that make the missing units of a stage, a window of them at a time.

    Two runs at one unit would do no harm, as the ledger keeps the first result, but cost twice.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        root: str,
        missing: Sequence[Work[Item]],
        batch: BatchFlow[Item],
    ) -> None:
        self.client = client
        self.root = root
        self.batch = batch
        self.stage = missing[0].unit.stage
        self.waiting = {one.unit.key: one for one in missing}
        self.active: dict[UUID, list[Work[Item]]] = {}
        self.crashes: Counter[str] = Counter()
        self.doubted: dict[UUID, float] = {}
        self.ends: dict[str, str] = {}

    def finish(self) -> dict[str, str]:
        """Make, adopt and watch runs until none is left.

        Returns how the run of a unit ended that did not make it, by the unit's key.
        """
        name = self.batch.flow.name
        deployment = self._deployment(f"{name}/{name}")
        window = self._window(deployment)
        get_run_logger().info(
            "Runs of %s, at most %d at a time, make what is missing: %d",
            name,
            window,
            len(self.waiting),
        )
        with self._cancelled_together():
            while self.waiting or self.active:
                if self.waiting:
                    self._adopt(deployment)
                while self.waiting and len(self.active) < window:
                    self._submit(self._next_batch(), deployment)
                time.sleep(POLL_SECONDS)
                self._let_go()
        return self.ends

    def _deployment(self, name: str) -> DeploymentResponse:
        try:
            return self._answer(lambda: self.client.read_deployment_by_name(name))
        except ObjectNotFound as error:
            raise InputError(
                f"fanout is deployment, which needs the deployment {name}, but this Prefect server "
                "has none; run `diffmining bootstrap`, or use fanout inline."
            ) from error

    def _window(self, deployment: DeploymentResponse) -> int:
        """Twice what the pool runs at once: so its workers never wait, nor does a long queue."""
        pool = deployment.work_pool_name
        assert pool, "prefect.yaml gives each deployment a pool"
        limit = self._answer(lambda: self.client.read_work_pool(pool)).concurrency_limit
        return 2 * limit if limit else AT_ONCE

    def _adopt(self, deployment: DeploymentResponse) -> None:
        """Leave to other runs what they make: those that outlived their parent, or another's."""
        making = {tag: run.id for run in self._under_way(deployment) for tag in run.tags}
        adopted = [one for one in self.waiting.values() if one.tag in making]
        for one in adopted:
            del self.waiting[one.unit.key]
            self.active.setdefault(making[one.tag], []).append(one)
        if adopted:
            names = ", ".join(one.name for one in adopted)
            get_run_logger().info("Runs that are under way already make %s", names)

    def _under_way(self, deployment: DeploymentResponse) -> Iterator[FlowRun]:
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            tags=FlowRunFilterTags(all_=[root_tag(self.root)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)),
        )
        offset = 0
        while page := self._read(wanted, offset):
            yield from page
            offset += PAGE

    def _read(self, wanted: FlowRunFilter, offset: int = 0) -> list[FlowRun]:
        return self._answer(
            lambda: self.client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=offset)
        )

    def _next_batch(self) -> list[Work[Item]]:
        """Units for one run; what a crash left goes alone, as it may be what makes runs crash."""
        fresh = (key for key in self.waiting if not self.crashes[key])
        keys = list(islice(fresh, self.batch.per_run)) or list(islice(self.waiting, 1))
        return [self.waiting.pop(key) for key in keys]

    def _submit(self, works: list[Work[Item]], deployment: DeploymentResponse) -> None:
        asked = self.batch.parameters([one.item for one in works])
        parameters = asked.model_dump(mode="json")
        # The flow's own naming comes with its start; who waits for a worker has a name too.
        name = str(self.batch.flow.flow_run_name).format(parameters=asked)
        tags = [root_tag(self.root), *(one.tag for one in works)]
        # One for all tries of this request, the first of which may have been heard; never that of
        # an earlier request, which would be answered with the run that failed then.
        key = str(uuid4())

        def submit() -> FlowRun:
            run = run_deployment(
                deployment.id,
                parameters={"parameters": parameters},
                timeout=0,
                flow_run_name=name,
                tags=tags,
                idempotency_key=key,
            )
            assert isinstance(run, FlowRun)  # a coroutine only in asynchronous code
            return run

        self.active[self._answer(submit).id] = works

    def _let_go(self) -> None:
        """Let go of runs that have ended; what crashed ones left is given to others, twice."""
        ended = {id_: run for id_, run in self._active_runs().items() if self._has_ended(id_, run)}
        there = published(open_root(self.root), self.stage) if ended else set()
        for key in there & self.waiting.keys():
            del self.waiting[key]  # another parent's run has made it meanwhile
        for run_id, run in ended.items():
            left = [one for one in self.active.pop(run_id) if one.unit.key not in there]
            if not left:
                continue
            end = _end(run)
            self.ends |= {one.unit.key: end for one in left}
            names = ", ".join(one.name for one in left)
            get_run_logger().warning("Without %s: %s", names, end)
            if run and run.state and run.state.is_crashed():
                self.crashes.update(one.unit.key for one in left)
                again = [one for one in left if self.crashes[one.unit.key] <= CRASHES]
                self.waiting |= {one.unit.key: one for one in again}

    def _has_ended(self, run_id: UUID, run: FlowRun | None) -> bool:
        """Whether a run is over; after an outage of the server it may seem dead for a while."""
        if run is not None and seems_dead(run.state):
            since = self.doubted.setdefault(run_id, time.monotonic())
            return time.monotonic() - since > SURE_SECONDS
        self.doubted.pop(run_id, None)
        return run is None or (run.state is not None and run.state.is_final())

    def _active_runs(self) -> dict[UUID, FlowRun | None]:
        """The active runs as they are now; None for one that was deleted."""
        ids = list(self.active)
        runs: dict[UUID, FlowRun | None] = dict.fromkeys(ids)
        for start in range(0, len(ids), PAGE):
            some = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + PAGE]))
            runs |= {run.id: run for run in self._read(some)}
        return runs

    def _answer(self, ask: Callable[[], Answer]) -> Answer:
        """What the server answers; one that is down for a while, or its database, is waited for.

        HTTPStatusError for what it refuses.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return ask()
            except httpx.HTTPError as error:
                refused = (
                    isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error
                )
                if refused or time.monotonic() > end:
                    raise
                get_run_logger().warning("The Prefect server does not answer: %r", error)
                time.sleep(POLL_SECONDS)

    @contextmanager
    def _cancelled_together(self) -> Iterator[None]:
        """Where this run is cancelled, so are its children, adopted ones too.

        The server does so later, but only for those that this run made.
        """
        try:
            yield
        except BaseException:
            with suppress(httpx.HTTPError):  # what ends this run is to be told, not this
                if self.active and self._is_cancelled():
                    state: State[Any] = Cancelling(
                        message="The run that waits for it was cancelled."
                    )
                    for run_id in self.active:
                        self.client.set_flow_run_state(run_id, state)
            raise

    def _is_cancelled(self) -> bool:
        """Whether this flow run is, or the one around it that a worker started this process for."""
        ids = {own_run.id, os.environ.get("PREFECT__FLOW_RUN_ID")} - {None}
        states = [self.client.read_flow_run(UUID(id_)).state for id_ in ids]
        return any(state and (state.is_cancelling() or state.is_cancelled()) for state in states)


def _is_refusal(error: httpx.HTTPError) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error


def _end(run: FlowRun | None) -> str:
    """How a run ended, as a person is told."""
    if run is None or run.state is None:
        return "its run was deleted"
    end = f"its run ({run.name}) is {run.state.name}"
    return f"{end}: {run.state.message}" if run.state.message else end


def root_tag(root: str) -> str:
    """On all runs that make units of one root for another."""
    return f"root:{hashlib.sha256(open_root(root).url.encode()).hexdigest()[:16]}"
