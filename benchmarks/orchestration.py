"""Orchestrate as many shards as Places365 has: a parent, its batch runs, a task run each.

All is real, on the local stack (PostgreSQL, Redis, server, services, a cpu worker, gpu workers),
but the work of the GPU: a task waits `--seconds` and publishes a unit of a few bytes.

    python -m benchmarks.orchestration
    python -m benchmarks.orchestration --shards 200 --per-run 10 --workers 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

from diffmining_core.recipes import MINED
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, published
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from flows.fan_out import BatchFlow, Work, fan_out, planned_there, run_missing
from flows.index import index_split
from flows.parameters import IndexParameters
from tasks.units import Done, fill, stage_task

REPOSITORY = Path(__file__).parents[1]
STACK = REPOSITORY / "infra" / "local" / "stack"
STAGE = "standin"
ROWS_PER_SHARD = 10
FIGURES = "orchestration.json"
RECORDING_SECONDS = 300
"""For so long the last events are waited for."""


class Orchestration(BaseModel):
    """What the parent is told."""

    dataset: str
    root: str
    per_run: int
    seconds: float


class StandInBatch(BaseModel):
    """What a batch run is told: as much as one that measures."""

    root: str
    shards: list[dict[str, Any]]
    seconds: float


def unit_of(shard: Shard) -> Unit:
    """The unit of a shard's stand-in work."""
    return Unit(STAGE, "standin-1", (shard.content_id,), {})


@stage_task(STAGE, "stand-in {shard.name}")
def stand_in(root: str, shard: Shard, seconds: float) -> Done:
    """Wait in place of a GPU, and publish a unit."""

    def produce(attempt: Attempt) -> None:
        time.sleep(seconds)
        attempt.write_bytes("work", b"done")
        attempt.counts["images"] = shard.images

    return fill(root, unit_of(shard), produce)


@flow(name="stand-in-batch", persist_result=False)
def stand_in_batch(parameters: StandInBatch) -> list[Done]:
    """As `typicality-batch` goes through its shards."""
    shards = [Shard.from_json(shard) for shard in parameters.shards]

    def run(shard: Shard) -> State[Done]:
        return stand_in(parameters.root, shard, parameters.seconds, return_state=True)

    return run_missing(works(shards), run)


@flow(name="orchestration")
def orchestration(parameters: Orchestration) -> None:
    """Index, plan, fan out; leaves its own figures at the root."""
    indexed = IndexParameters(
        dataset=parameters.dataset, root=parameters.root, shard_rows=ROWS_PER_SHARD
    )
    _, dataset = index_split(indexed, MINED)
    before, started = peak_mib(), time.monotonic()
    work = works(dataset)
    there = planned_there(parameters.root, STAGE, [one.unit.key for one in work])
    planning = time.monotonic() - started

    def batch(shards: Sequence[Shard]) -> StandInBatch:
        return StandInBatch(
            root=parameters.root,
            shards=[asdict(shard) for shard in shards],
            seconds=parameters.seconds,
        )

    flows = BatchFlow(stand_in_batch, batch, parameters.per_run)
    fan_out(parameters.root, work, there, flows, "deployment")
    figures = {
        "planning": planning,
        "fanned out": time.monotonic() - started - planning,
        "memory when planned": before,
        "memory at most": peak_mib(),
    }
    open_root(parameters.root).write_bytes(FIGURES, json.dumps(figures).encode())


def works(shards: Sequence[Shard]) -> list[Work[Shard]]:
    """The wanted units."""
    return [Work(unit_of(shard), f"shard {shard.name}", shard) for shard in shards]


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Start the stack, run, count what the server recorded, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shards", type=int, default=1804)
    parser.add_argument("--per-run", type=int, default=32, help="shards of a batch run")
    parser.add_argument("--workers", type=int, default=2, help="gpu workers, and runs at once")
    parser.add_argument("--seconds", type=float, default=0.0, help="of stand-in work for a shard")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="diffmining-orchestration-"))
    folder.chmod(0o755)  # PostgreSQL's own user has to pass through
    try:
        with started_stack(folder / "stack", arguments.workers):
            print_table(measure(arguments, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """The figures, for docs/scale.md."""
    print(f"\n{os.cpu_count()} cores, PostgreSQL and Redis on the same machine\n")
    print("| what | measured |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |", flush=True)


@contextmanager
def started_stack(folder: Path, workers: int) -> Iterator[None]:
    """The local stack, with its variables in the environment."""
    parts = ["postgres", "redis", "server", "services", "worker-cpu", "worker-gpu"]
    parts += [f"worker-gpu-{number}" for number in range(2, workers + 1)]
    environment = {
        **os.environ,
        "STACK_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),  # where the flows of this benchmark are
    }
    try:
        started = subprocess.run(
            [STACK, "start", folder, *parts],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = dict(line.split("=", 1) for line in started.stdout.splitlines())
        settings = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
        with temporary_settings({setting: said[setting.name] for setting in settings}):
            yield
    finally:
        subprocess.run([STACK, "remove", folder], check=True)


def measure(arguments: argparse.Namespace, folder: Path) -> list[tuple[str, str]]:
    """Run it all once, and once more with nothing to do."""
    deploy(arguments.workers)
    manifest, root = folder / "manifest.parquet", folder / "root"
    write_manifest(manifest, arguments.shards * ROWS_PER_SHARD)
    parameters = Orchestration(
        dataset=str(manifest),
        root=str(root),
        per_run=arguments.per_run,
        seconds=arguments.seconds,
    )
    most = Watched(folder / "stack")
    run = partial(
        run_deployment,
        "orchestration/orchestration",
        parameters={"parameters": parameters.model_dump()},
        poll_interval=2,
    )
    with most:
        finish(run)
    figures = json.loads((root / FIGURES).read_text())
    done = len(published(open_root(str(root)), STAGE))
    tasks, runs, waited = recorded(arguments.shards)
    started = time.monotonic()
    finish(run)
    again = time.monotonic() - started
    shards, workers = arguments.shards, arguments.workers
    seconds = figures["fanned out"]
    overhead = seconds * workers / shards - arguments.seconds
    return [
        ("shards, in each batch run, gpu workers", f"{shards}, {arguments.per_run}, {workers}"),
        ("stand-in work for a shard", f"{arguments.seconds:g} s"),
        ("units published", f"{done}"),
        ("task runs recorded as Completed", f"{tasks}, {waited:.0f} s after the parent's end"),
        ("batch runs recorded as Completed", f"{runs}"),
        ("planning", f"{figures['planning']:.2f} s"),
        ("all batches", f"{seconds:.0f} s"),
        ("overhead for a shard, of a worker's time", f"{overhead:.2f} s"),
        ("parent's memory, planned and at most",
         f"{figures['memory when planned']:.0f} and {figures['memory at most']:.0f} MiB"),
        ("the same again, nothing to do, from click to Completed", f"{again:.0f} s"),
        *((f"memory of {part} at most", f"{mib:.0f} MiB") for part, mib in most.mib.items()),
    ]  # fmt: skip


def finish(run: Callable[[], Any]) -> None:
    """Run the deployment to its end; RuntimeError unless it completes."""
    state = run().state
    if not state.is_completed():
        raise RuntimeError(f"the run is {state.name}: {state.message}")


def deploy(gpus: int) -> None:
    """The two deployments, and as many runs at once on the gpu pool as there are workers."""
    with get_client(sync_client=True) as client:
        for pool in ("cpu", "gpu"):
            with suppress(ObjectAlreadyExists):  # its worker may have made it
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=gpus))
        for deployed, pool in ((orchestration, "cpu"), (stand_in_batch, "gpu")):
            client.create_deployment(
                client.create_flow(deployed),
                deployed.name,
                entrypoint=f"benchmarks.orchestration.{deployed.fn.__name__}",
                work_pool_name=pool,
                parameter_openapi_schema=parameter_schema(deployed).model_dump(),
            )


def write_manifest(path: Path, rows: int) -> None:
    """Images that declare id and size, so that none is opened."""
    numbers = range(rows)
    table = {
        "uri": [f"s3://places/{number:08d}.jpg" for number in numbers],
        "label": [f"label_{number * 365 // rows:03d}" for number in numbers],
        "image_id": [f"{number:032x}" for number in numbers],
        "width": pa.array([256] * rows, pa.int32()),
        "height": pa.array([256] * rows, pa.int32()),
    }
    pq.write_table(pa.table(table), path)


def recorded(shards: int) -> tuple[int, int, float]:
    """Task runs and batch runs that the server has as Completed, and seconds until it had.

    Task runs are recorded from events, some time after they have ended.
    """
    completed = {"state": {"type": {"any_": [StateType.COMPLETED.value]}}}
    of_tasks = {"task_runs": {**completed, "name": {"like_": "stand-in "}}}
    of_runs = {"flows": {"name": {"any_": ["stand-in-batch"]}}, "flow_runs": completed}
    started = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            tasks = client.request("POST", "/task_runs/count", json=of_tasks).json()
            waited = time.monotonic() - started
            if tasks >= shards or waited > RECORDING_SECONDS:
                break
            time.sleep(1)
        return tasks, client.request("POST", "/flow_runs/count", json=of_runs).json(), waited


class Watched:
    """The most memory of the stack's own processes while it is entered, in MiB by part."""

    def __init__(self, folder: Path) -> None:
        self.pids = {path.stem: int(path.read_text()) for path in (folder / "run").glob("*.pid")}
        self.mib: dict[str, float] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(1):
            for part, pid in self.pids.items():
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
                self.mib[part] = int(peak) / 1024


if __name__ == "__main__":
    main()
