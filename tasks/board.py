"""A board in the Prefect UI: how far a stage is, unit by unit, and what is typical so far.

In: the units that a run wants, while this process or others make them. Out: artifacts of that run,
made once and kept up to date. What is done is read from the ledger; Prefect tells only who is at
work. The board is for people alone: what goes wrong in it is logged once and fails nothing.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run as own_run
from tqdm import tqdm

from diffmining_core.report.escaping import cell_text, markdown_text
from diffmining_core.store.ledger import Manifest, published, read_manifests
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import Failure, failures
from tasks.typical import TypicalSoFar

UPDATE_SECONDS = 10.0
"""Between two looks at the ledger."""
PICTURE_SECONDS = 2.0
"""Of a look, after which no other shard's patches are begun."""
LAST_LOOK_SECONDS = 30.0
"""That the run waits for the last look, at most."""
ROWS = 100
"""Units in the table, below the sums of all."""
AT_WORK = 200
"""Task runs that the server tells of at once."""

FAILED, RUNNING, DONE, WAITING = STATES = ("failed", "running", "done", "waiting")
"""In the order of the table."""

Cells = dict[str, str | int | float]
"""A row of the table."""


@dataclass(frozen=True)
class Row:
    """A unit on the board.

    name: what a person calls it. task_run: the name of the task run that makes it. images: how many
    it is about, 0 where they are not counted. about: more columns of the table.
    """

    key: str
    name: str
    task_run: str
    images: int
    about: Mapping[str, str]


@dataclass(frozen=True)
class Made:
    """What the table says of a published unit."""

    created: str
    seconds: float
    set_aside: int
    device: str

    @classmethod
    def of(cls, manifest: Manifest) -> Made:
        """The little that is kept of a manifest."""
        set_aside = manifest.counts.get("set_aside", 0)
        return cls(manifest.created, manifest.seconds, set_aside, manifest.device)


class Board:
    """Keeps the artifacts of a stage up to date, on a thread, until its `with` is left.

    noun: what a unit is, such as "shard". title: what the run is about. tag: on all runs that make
    units at this root. there: the keys of units that were published before; where none is missing
    there is no board.
    """

    def __init__(
        self,
        root: str,
        stage: str,
        noun: str,
        title: str,
        tag: str,
        rows: Sequence[Row],
        there: set[str],
        typical: TypicalSoFar | None = None,
    ) -> None:
        self.root, self.stage, self.noun, self.title = open_root(root), stage, noun, title
        self.rows = {row.key: row for row in rows}
        self.tag, self.typical = tag, typical
        self.made: dict[str, Made] = {}
        self.before = there & self.rows.keys()
        self.failed_before: dict[str, Failure] = {}
        self.unpictured: deque[str] = deque()
        self.artifacts: dict[str, UUID] = {}
        self.shown: dict[str, dict[str, Any]] = {}
        self.started = time.monotonic()
        self.left = Event()
        self.counts_images = any(row.images for row in rows)
        self.thread: Thread | None = None
        self.warned = False

    def __enter__(self) -> Board:
        if self.before != self.rows.keys():
            with self._failing_nothing():
                self.failed_before = failures(self.root, self.stage)
            # In the run's context: what is logged there is logged for the run.
            run = copy_context().run
            self.thread = Thread(target=run, args=(self._keep,), name="board", daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.left.set()
        if self.thread:
            self.thread.join(LAST_LOOK_SECONDS)

    def _keep(self) -> None:
        last = False
        while not last:
            last = self.left.is_set()
            with self._failing_nothing(), get_client(sync_client=True) as client:
                self._look(client)
            self.left.wait(UPDATE_SECONDS)

    @contextmanager
    def _failing_nothing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.warned:
                self.warned = True
                get_run_logger().warning(
                    "The board of %s in Prefect's UI is not up to date, on which no result "
                    "depends: %r",
                    self.stage,
                    error,
                )

    def _look(self, client: SyncPrefectClient) -> None:
        new = (published(self.root, self.stage) & self.rows.keys()) - self.made.keys()
        for manifest in read_manifests(self.root, self.stage, sorted(new)):
            self.made[manifest.key] = Made.of(manifest)
            if self.typical and manifest.key in self.typical.shards:
                self.unpictured.append(manifest.key)
        reasons = {
            key: failure.reason
            for key, failure in failures(self.root, self.stage).items()
            if failure != self.failed_before.get(key)
        }
        states = self._states(at_work(client, self.tag), reasons)
        self._show(client, "progress", f"{self.stage}-progress", self._share(), self._progress())
        self._show(
            client,
            "table",
            f"{self.stage}-{self.noun}s",
            json.dumps(self._table(states, reasons)),
            self._said(states),
        )
        if self.typical:
            self._show_typical(client, self.typical)

    def _states(self, at_work: set[str], reasons: Mapping[str, str]) -> dict[str, str]:
        def state(row: Row) -> str:
            if row.key in self.made:
                return DONE
            if row.task_run in at_work:
                return RUNNING
            return FAILED if row.key in reasons else WAITING

        return {key: state(row) for key, row in self.rows.items()}

    def _share(self) -> float:
        """Percent of the units."""
        return 100 * len(self.made) / len(self.rows)

    def _progress(self) -> str:
        """How far, how fast and how long still; in images where those are counted."""
        done = [f"{len(self.made):,} of {len(self.rows):,} {self.noun}s"]
        work = {key: row.images if self.counts_images else 1 for key, row in self.rows.items()}
        unit = "images" if self.counts_images else f"{self.noun}s"
        missing = sum(work[key] for key in self.rows.keys() - self.made.keys())
        if self.counts_images:
            every = sum(work.values())
            done.append(f"{every - missing:,} of {every:,} images")
        since = time.monotonic() - self.started
        if rate := sum(work[key] for key in self.made.keys() - self.before) / since:
            done.append(f"{rate:.3g} {unit} a second")
            if missing:
                done.append(f"{tqdm.format_interval(missing / rate)} left")
        return self._titled(", ".join(done))

    def _said(self, states: Mapping[str, str]) -> str:
        failed = [self.rows[key].name for key, state in states.items() if state == FAILED]
        named = f"; failed: {', '.join(failed[:5])}" if failed else ""
        return self._titled(f"{_sums(states)}{named}")

    def _titled(self, text: str) -> str:
        """A description, which the UI draws as Markdown and shows the beginning of in lists."""
        return markdown_text(f"{text} · {self.title}", 300)

    def _table(self, states: Mapping[str, str], reasons: Mapping[str, str]) -> list[Cells]:
        """The sums, then the units: failed and running ones, the latest done, those that wait."""

        def place(key: str) -> tuple[int, str]:
            return STATES.index(states[key]), self.rows[key].name

        latest = sorted(self.made, key=lambda key: self.made[key].created, reverse=True)
        others = sorted(self.rows.keys() - self.made.keys(), key=place)
        at_waiting = sum(states[key] != WAITING for key in others)
        keys = [*others[:at_waiting], *latest, *others[at_waiting:]][:ROWS]
        everything: Cells = {
            self.noun: f"all {len(self.rows):,}",
            "state": _sums(states),
            **self._images(
                sum(row.images for row in self.rows.values()),
                sum(made.set_aside for made in self.made.values()),
            ),
            "seconds": round(sum(made.seconds for made in self.made.values()), 1),
        }
        cells = [self._cells(key, states[key], reasons.get(key)) for key in keys]
        # The newer UI takes the columns from the first row.
        return [{**dict.fromkeys(cells[0], ""), **everything}, *cells]

    def _cells(self, key: str, state: str, why: str | None) -> Cells:
        row, made = self.rows[key], self.made.get(key)
        return {
            self.noun: cell_text(row.name),
            "state": state,
            **self._images(row.images, made.set_aside if made else ""),
            "seconds": round(made.seconds, 1) if made else "",
            **{name: cell_text(text) for name, text in row.about.items()},
            "device": made.device if made else "",
            "why": cell_text(why, 300) if state == FAILED and why else "",
        }

    def _images(self, images: int, set_aside: int | str) -> Cells:
        return {"images": images, "set aside": set_aside} if self.counts_images else {}

    def _show_typical(self, client: SyncPrefectClient, typical: TypicalSoFar) -> None:
        if not self.unpictured:
            return
        end = time.monotonic() + PICTURE_SECONDS
        while self.unpictured and time.monotonic() < end:
            typical.add(self.unpictured.popleft())  # first: one that fails is not tried again
        shards = f"{typical.added:,} of {len(typical.shards):,} shards"
        said = self._titled(f"highest patches so far, in {shards}")
        self._show(client, "markdown", "typical-so-far", typical.markdown(), said)

    def _show(
        self, client: SyncPrefectClient, kind: str, key: str, data: object, description: str
    ) -> None:
        content: dict[str, Any] = {"data": data, "description": description}
        if self.shown.get(key) == content:
            return
        if key in self.artifacts:
            # Not update_artifact: it sends all data along in an event, and events are kept.
            client.request(
                "PATCH",
                "/artifacts/{id}",
                path_params={"id": self.artifacts[key]},
                json=ArtifactUpdate(**content).model_dump(mode="json", exclude_unset=True),
            )
        else:
            made = client.create_artifact(
                ArtifactCreate(key=key, type=kind, flow_run_id=UUID(own_run.id), **content)
            )
            self.artifacts[key] = made.id
        self.shown[key] = content


def at_work(client: SyncPrefectClient, tag: str) -> set[str]:
    """The names of the task runs that are running in running flow runs with this tag."""
    running = [StateType.RUNNING]
    runs = client.read_task_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[tag]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=running)),
        ),
        task_run_filter=TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=running))
        ),
        limit=AT_WORK,
    )
    return {run.name for run in runs}


def _sums(states: Mapping[str, str]) -> str:
    """How many are in each state."""
    counts = Counter(states.values())
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
