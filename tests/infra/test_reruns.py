"""What breaks on a real server with real workers, what the UI then says, and what a rerun does.

The flow is `typicality`, whose parent run has runs on the pool `gpu` measure shards of one country.
An image that is a `Gate` keeps the run that reads it in the middle of its shard, at no cost.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pyarrow as pa
import pyarrow.csv
import pytest
from local_stack import Stack, is_running
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from stored import attempts, results_of

from deployments.bootstrap import bootstrap
from deployments.profile import profile_file
from diffmining_core.images.pixels import content_id
from diffmining_core.store.garbage import clear_garbage
from diffmining_core.store.roots import open_root
from diffmining_core.store.verification import damaged_files, holdings
from flows.fan_out import root_tag
from flows.orphans import ENDED, LIVES, NO_HEARTBEAT
from flows.parameters import TypicalityParameters

SIDE = 128
"""Pixels along the side of a drawn scene."""
SECONDS = 300
"""For what takes a tenth of that on two free cores."""
GPU_WORKERS = ("worker-gpu", "worker-gpu-2")


class Gate:
    """An image that the stack's processes cannot open before the gate is: who tries waits."""

    def __init__(self, image: Path) -> None:
        self.closed = image.with_name(f"{image.name}.gate")
        self.closed.touch()

    def open(self) -> None:
        """Those that wait go on."""
        self.closed.unlink()


def declared(dataset: Path, folder: Path, countries: Sequence[str]) -> Path:
    """A dataset of its own: 4 scenes of each country, which are opened when they are measured."""
    folder.mkdir()
    images = []
    for country in countries:
        shutil.copytree(dataset / country, folder / country)
        images += sorted((folder / country).iterdir())
    columns: dict[str, list[Any]] = {
        "uri": [image.relative_to(folder).as_posix() for image in images],
        "label": [image.parent.name for image in images],
        "image_id": [content_id(image.read_bytes()) for image in images],
        "width": [SIDE] * len(images),
        "height": [SIDE] * len(images),
    }
    pyarrow.csv.write_csv(pa.table(columns), folder / "images.csv")
    return folder / "images.csv"


def measuring(dataset: Path, root: Path, **changes: Any) -> TypicalityParameters:
    """Parameters of runs of seconds: a shard for each country."""
    small = {"size": 64, "finetune_steps": 0, "draws": 2, "shard_rows": 4, "device": "cpu"}
    return TypicalityParameters(
        **{"dataset": str(dataset), "root": str(root), "shards_per_batch": 1, **small, **changes}
    )


def eventually(seen: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """What is seen once that is something."""
    end = time.monotonic() + seconds
    while not (result := seen()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.5)
    return result


def kill(*pids: int) -> None:
    """Ends processes before they can say anything, and waits until they have ended."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(is_running(pid) for pid in pids), "killed")


@dataclass
class Operator:
    """Starts, watches and cancels runs."""

    stack: Stack
    client: SyncPrefectClient

    def start(self, parameters: TypicalityParameters) -> FlowRun:
        """A parent run, as the UI's form makes it."""
        return run_deployment(
            "typicality/typicality",
            parameters={"parameters": parameters.model_dump(mode="json", exclude_unset=True)},
            timeout=0,
        )  # type: ignore[return-value]

    def run(self, run: FlowRun) -> FlowRun:
        """As it is now."""
        return self.client.read_flow_run(run.id)

    def state(self, run: FlowRun) -> State[Any]:
        state = self.run(run).state
        assert state is not None
        return state

    def ended(self, run: FlowRun, *states: str) -> State[Any]:
        """The state in which the run ends; fails where that is none of these."""

        def end() -> State[Any] | None:
            state = self.state(run)
            return state if state.is_final() and state.name != "Cancelling" else None

        state: State[Any] = eventually(end, f"{run.name} ends")
        assert state.name in states, f"{state.name}: {state.message}"
        return state

    def children(self, parameters: TypicalityParameters) -> list[FlowRun]:
        """The runs that measure for this root, in the order they were made."""
        return self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags={"all_": [root_tag(parameters.root), "batch"]}),  # type: ignore[arg-type]
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )

    def child(self, parameters: TypicalityParameters, number: int) -> FlowRun:
        """The run of this number, once there is one."""
        eventually(lambda: len(self.children(parameters)) > number, f"child {number}")
        return self.children(parameters)[number]

    def in_the_middle(self, parameters: TypicalityParameters, number: int) -> FlowRun:
        """The child of this number once it is in the middle of a shard."""
        run = self.child(parameters, number)
        eventually(lambda: self.progress(run.id), f"{run.name} measures")
        return self.run(run)

    def progress(self, run_id: UUID) -> list[float]:
        """How far its shards are that have begun, in percent."""
        wanted = ArtifactFilter(
            flow_run_id={"any_": [run_id]},  # type: ignore[arg-type]
            type={"any_": ["progress"]},  # type: ignore[arg-type]
        )
        return [float(one.data) for one in self.client.read_artifacts(artifact_filter=wanted)]  # type: ignore[arg-type]

    def said(self, run: FlowRun, words: str) -> bool:
        """Whether the run's log has these words."""
        logs = self.client.read_logs(LogFilter(flow_run_id={"any_": [run.id]}))  # type: ignore[arg-type]
        return any(words in line.message for line in logs)

    def pid(self, run: FlowRun) -> int:
        """Of the run's process."""
        return int(
            eventually(lambda: self.run(run).infrastructure_pid, f"{run.name} has a process")
        )

    def worker(self, run: FlowRun) -> str:
        return str(self.run(run).labels["prefect.worker.name"])

    def retry(self, run: FlowRun) -> None:
        """What the UI's Retry does."""
        self._set_state(run, "SCHEDULED", "AwaitingRetry", "Retry from the UI")

    def cancel(self, run: FlowRun) -> None:
        """What the UI's Cancel does."""
        self._set_state(run, "CANCELLING", "Cancelling")

    def take_for_dead(self, run: FlowRun) -> None:
        """What the automation does where no heartbeats come."""
        self._set_state(run, "CRASHED", "Crashed", f"{NO_HEARTBEAT} for 90 s")

    def _set_state(self, run: FlowRun, type_: str, name: str, message: str | None = None) -> None:
        state = {"type": type_, "name": name, "message": message}
        user, _, password = self.stack.environment["PREFECT_API_AUTH_STRING"].partition(":")
        httpx.post(
            f"{self.stack.environment['PREFECT_API_URL']}/flow_runs/{run.id}/set_state",
            json={"state": state, "force": True},
            auth=(user, password),
            timeout=60,
        ).raise_for_status()


@pytest.fixture
def operator(stack: Stack, tmp_path: Path) -> Iterator[Operator]:
    """One with our deployments, a CPU worker and two GPU workers."""
    stack.start(*GPU_WORKERS)
    profile = tmp_path / "faults.toml"
    # More than there are workers: what has crashed unseen holds its place for a while.
    text = profile_file("local").read_text(encoding="utf-8").replace("\ngpus = 1", "\ngpus = 4")
    profile.write_text(text, encoding="utf-8")
    bootstrap(str(profile), dry_run=False)
    with get_client(sync_client=True) as client:
        yield Operator(stack, client)


def clicked_retry(stack: Stack, run: FlowRun) -> bool:
    """Clicks Retry on the run's page; False where there is no browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return False
    playwright = pytest.importorskip("playwright.sync_api")
    api = urlsplit(stack.environment["PREFECT_API_URL"])
    address = f"{api.scheme}://{api.netloc}"

    def stay_here(asked: Any) -> None:
        here = asked.request.url.startswith((address, "data:"))
        asked.continue_() if here else asked.abort()

    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.route("**/*", stay_here)
        page.goto(f"{address}/v2/login")
        page.locator("input[type=password]").fill(stack.environment["PREFECT_API_AUTH_STRING"])
        page.keyboard.press("Enter")
        page.wait_for_url("**/dashboard*")
        page.goto(f"{address}/v2/runs/flow-run/{run.id}")
        page.get_by_role("button", name="Open menu").click()
        page.get_by_role("menuitem", name="Retry").click()
        page.get_by_role("alertdialog").get_by_role("button", name="Retry").click()
        page.get_by_text("Flow run scheduled for retry").wait_for()
        browser.close()
    return True


def test_a_poisoned_shard_is_named_and_retry_measures_only_that(
    operator: Operator, dataset: Path, tmp_path: Path
) -> None:
    images = declared(dataset, tmp_path / "data", ["Almara", "Borvik", "Cendria", "Dorrava"])
    poisoned = next((tmp_path / "data" / "Borvik").iterdir())
    content = poisoned.read_bytes()
    poisoned.write_bytes(content[:-300])
    root = tmp_path / "root"
    parameters = measuring(images, root, shards_per_batch=2, max_bad_share=0.0)

    run = operator.start(parameters)
    message = str(operator.ended(run, "Failed").message)
    assert "1 of 4 images of a shard cannot be used, more than the 0% allowed" in message
    assert poisoned.name in message
    first = operator.children(parameters)
    assert sorted(str(operator.state(child).name) for child in first) == ["Completed", "Failed"]
    assert {operator.worker(child) for child in first} == set(GPU_WORKERS), "they share the shards"
    done = results_of(root, "typicality")
    assert len(done) == 3

    poisoned.write_bytes(content)
    if not clicked_retry(operator.stack, run):
        operator.retry(run)
    operator.ended(run, "Completed")
    assert operator.run(run).run_count == 2
    (again,) = operator.children(parameters)[2:]
    (shard,) = again.parameters["parameters"]["shards"]
    assert f"1 of 4 units failed: shard {shard['key'][:8]} " in message
    now = results_of(root, "typicality")
    assert len(now) == 4
    assert {unit: now[unit] for unit in done} == done
    assert set(attempts(root).values()) == {1}


def test_cancel_stops_the_gpu_in_the_middle_of_a_shard_and_a_rerun_goes_on(
    operator: Operator, dataset: Path, tmp_path: Path
) -> None:
    images = declared(dataset, tmp_path / "data", ["Almara", "Borvik"])
    root = tmp_path / "root"
    draws = draws_lasting(sorted((tmp_path / "data" / "Almara").iterdir()), seconds=8)
    parameters = measuring(images, root, shards_per_batch=2, draws=draws)

    run = operator.start(parameters)
    child = operator.child(parameters, 0)

    def second_shard_is_half_done() -> bool:
        percent = operator.progress(child.id)
        return len(percent) == 2 and any(0 < part < 100 for part in percent)

    eventually(second_shard_is_half_done, "the second shard is measured")
    done = results_of(root, "typicality")
    assert len(done) == 1
    processes = [operator.pid(run), operator.pid(child)]
    operator.cancel(run)
    eventually(lambda: not any(map(is_running, processes)), "both processes end")
    operator.ended(run, "Cancelled")
    operator.ended(child, "Cancelled")

    opened = open_root(str(root))
    assert results_of(root, "typicality") == done
    assert not list(damaged_files(opened, holdings(opened).files, lambda count: None))
    garbage = [item for item, _ in clear_garbage(opened, age=0, delete=False)]
    assert all(item.kind == "attempt" and f"typicality/{item.key}" not in done for item in garbage)

    operator.ended(operator.start(parameters), "Completed")
    now = results_of(root, "typicality")
    assert len(now) == 2
    assert {unit: now[unit] for unit in done} == done
    _, again = operator.children(parameters)
    assert len(again.parameters["parameters"]["shards"]) == 1


def draws_lasting(images: Sequence[Path], seconds: float) -> int:
    """How many draws of these images keep this machine busy for so long."""
    torch = pytest.importorskip("torch")
    from diffmining_core.images.shard_image import ShardImage
    from diffmining_core.models.files import ModelSource
    from diffmining_core.models.pipelines import load_pipeline
    from diffmining_core.models.prompts import PromptTemplate
    from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

    pipeline = load_pipeline(ModelSource("tiny"), "cpu", torch.float32)
    rows = [
        ShardImage(content_id(image.read_bytes()), str(image), "Almara", SIDE, SIDE)
        for image in images
    ]

    def cost(draws: int) -> float:
        started = time.process_time()
        template = PromptTemplate("An image of {label}.", "")
        shard_typicality(pipeline, rows, TypicalityOptions(template, 64, draws, (0.1, 0.7), 1), 32)
        return time.process_time() - started

    cost(2)
    return int(seconds / cost(20) * 20)


def test_what_is_killed_ends_as_what_it_is_and_reruns_make_only_what_is_missing(
    operator: Operator, dataset: Path, tmp_path: Path
) -> None:
    stack = operator.stack

    def gated(name: str, country: str) -> tuple[TypicalityParameters, Gate]:
        images = declared(dataset, tmp_path / name, [country])
        gate = Gate(tmp_path / name / country / f"{country}_00001.png")
        return measuring(images, tmp_path / f"{name} root"), gate

    first, first_gate = gated("first", "Almara")
    second, second_gate = gated("second", "Borvik")
    third, _ = gated("third", "Cendria")

    lost, kept = operator.start(first), operator.start(second)
    lost_child, kept_child = (operator.in_the_middle(each, 0) for each in (first, second))
    gpu, other_gpu = operator.worker(lost_child), operator.worker(kept_child)
    assert {gpu, other_gpu} == set(GPU_WORKERS)

    # A parent alone: its worker tells. Its child goes on, and the rerun waits for it.
    kill(operator.pid(kept))
    assert "status code: -9" in str(operator.ended(kept, "Crashed").message)
    operator.retry(kept)
    eventually(lambda: operator.said(kept, "are under way already"), "the rerun adopts the child")
    assert operator.state(kept_child).name == "Running"
    assert len(operator.children(second)) == 1

    # Runs together with their workers: nobody is left to tell, until their heartbeats are missed.
    kill(stack.pid(gpu), operator.pid(lost_child), stack.pid("worker-cpu"), operator.pid(lost))
    stack.start("worker-cpu")

    # A child alone. Its parent, whose worker has just died, makes another run for what is missing.
    kill(operator.pid(kept_child))
    another = operator.in_the_middle(second, 1)
    assert "status code: -9" in str(operator.ended(kept_child, "Crashed").message)

    # The server and its database: whatever runs, goes on.
    stack.kill("server")
    stack.kill("postgres")
    stack.start("postgres", "server", "services")
    operator.take_for_dead(another)  # as happens where the server is away for longer

    # Workers alone: what they started goes on, and can be cancelled.
    cancelled = operator.start(third)
    waiting = operator.child(third, 0)  # for a worker
    process = operator.pid(cancelled)
    kill(stack.pid("worker-cpu"), stack.pid(other_gpu))
    operator.cancel(cancelled)
    assert operator.ended(cancelled, "Cancelled").message == ENDED
    eventually(lambda: not is_running(process), "the cancelled process ends")
    operator.ended(waiting, "Cancelled")

    for run in (lost, lost_child):
        assert NO_HEARTBEAT in str(operator.ended(run, "Crashed").message)
    assert [operator.state(run).name for run in (kept, another)] == ["Running", "Running"]
    assert operator.state(another).message == LIVES
    second_gate.open()
    operator.ended(another, "Completed")
    operator.ended(kept, "Completed")
    assert len(operator.children(second)) == 2

    first_gate.open()
    stack.start(*GPU_WORKERS, "worker-cpu")
    operator.retry(lost)
    operator.ended(lost, "Completed")
    assert len(operator.children(first)) == 2
    for parameters in (first, second):
        assert len(results_of(parameters.root, "typicality")) == 1
        assert set(attempts(Path(parameters.root)).values()) == {1}
    assert not results_of(third.root, "typicality")
