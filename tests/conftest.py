"""A Prefect server of the tests' own, a few drawn scenes, and one mined root to start from."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Before anything imports Prefect: the user's own settings, server and files are none of ours.
for name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[name]
_HOME = Path(tempfile.mkdtemp(prefix="diffmining-tests-"))
os.environ["PREFECT_HOME"] = str(_HOME / "prefect")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads are no faster on such small models
os.environ["HF_HOME"] = str(_HOME / "hub")

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("infra", "s3")]

import pytest  # noqa: E402 - the environment comes first
from faulty_proxy import FaultyProxy  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from local_stack import Stack, local_stack  # noqa: E402
from s3_servers import S3Server, rgw_server  # noqa: E402
from unet_forwards import counted_forwards  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from diffmining_core.images.street_scenes import write_dataset  # noqa: E402
from flows.parameters import MineParameters  # noqa: E402

# The same examples in every run, however busy the machine is.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

SERVER_SECONDS = 300
IMAGES_PER_COUNTRY = 5
FIRST = ("Almara", "Borvik", "Cendria", "Dorrava")
"""The labels of the dataset to start from, with 4 images each; Elsund comes later."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first and the many short ones of the core last: so all processes end together."""
    items.sort(key=lambda item: ("core" in item.path.parts) - ("infra" in item.path.parts))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Where several processes share the tests, a file stays in one of them.

    So does a folder whose files share a server: a stack in `infra`, another in `deployments`.
    """

    class ByFile(LoadScopeScheduling):  # type: ignore[misc] # it ships no types
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            shared = file.parent if file.parent.name in ("infra", "deployments") else file
            return str(shared)

    return ByFile(config, log)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a running Prefect server, configured here and for commands started here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = _HOME / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, *command, "--no-services"],
            stdout=output,
            stderr=output,
            env={**os.environ, "PREFECT_UI_ENABLED": "false"},
        )
    try:
        _wait_until_healthy(api, server, log)
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            temporary_settings,
        )

        # Without heartbeats, which nobody awaits here: a run's end waits up to a second for them.
        changes = {PREFECT_API_URL: api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PREFECT_API_URL", api)
            with temporary_settings(changes):
                yield api
            from prefect.logging.handlers import APILogHandler

            APILogHandler().flush()  # else the last lines look for the server that has gone
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_until_healthy(api: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def started_stack() -> Iterator[Stack]:
    """The tests' one local stack; `stack` sees that all of it runs."""
    with local_stack() as stack:
        yield stack


@pytest.fixture
def stack(started_stack: Stack) -> Iterator[Stack]:
    """A local stack, which Prefect's client and s3:// mean during the test.

    A test may kill parts of it: what is dead is started again before the next.
    """
    started_stack.start()
    with started_stack.used():
        yield started_stack


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes, 5 of each of 5 countries, with their planted truth."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    write_dataset(folder, IMAGES_PER_COUNTRY, seed=1)
    return folder


@pytest.fixture(scope="session")
def dataset(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 scenes of each of 4 countries, and the truth about all scenes."""
    folder = tmp_path_factory.mktemp("dataset") / "streets"
    for label in FIRST:
        (folder / label).mkdir(parents=True)
        for image in sorted((scenes / label).iterdir())[:4]:
            shutil.copy(image, folder / label)
    shutil.copy(scenes / "truth.parquet", folder)
    return folder


@pytest.fixture(scope="session")
def parameters(dataset: Path) -> Callable[..., MineParameters]:
    """Parameters of a run of seconds: shards of 6, 6 and 4 images; keywords change some."""

    def make(root: Path | str, **changes: Any) -> MineParameters:
        small = {
            "size": 64,
            "finetune_steps": 6,
            "finetune_batch": 2,
            "held_out": 0,
            "preview_every": 0,
            "draws": 2,
            "k": 2,
            "top": 12,
            "shard_rows": 6,
            "device": "cpu",
        }
        return MineParameters(**{"dataset": str(dataset), "root": str(root), **small, **changes})

    return make


@pytest.fixture
def forwards() -> Iterator[Counter[str]]:
    """What goes through UNets during the test."""
    with counted_forwards() as seen:
        yield seen


@pytest.fixture(scope="session")
def first_run(
    prefect_api: str,
    parameters: Callable[..., MineParameters],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any], int]:
    """A mined root (leave it as it is), its run's summary, and the UNet forwards counted."""
    from flows.mine import mine

    root = tmp_path_factory.mktemp("mined") / "root"
    with counted_forwards() as seen:
        summary = mine(parameters(root))
    return root, summary, seen["images"]


@pytest.fixture
def root(first_run: tuple[Path, dict[str, Any], int], tmp_path: Path) -> Path:
    """A copy of the mined root."""
    return Path(shutil.copytree(first_run[0], tmp_path / "root"))


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with a bucket `results`."""
    with rgw_server(tmp_path_factory.mktemp("s3") / "server") as server:
        server.make_bucket("results")
        yield server


@pytest.fixture
def rgw_bucket(rgw: S3Server) -> Iterator[str]:
    """A bucket at the real S3 server, which s3:// means during the test."""
    with rgw.used():
        yield "results"


@pytest.fixture
def faulty(rgw: S3Server) -> Iterator[Callable[..., FaultyProxy]]:
    """Starts a faulty network before the real S3 server, which s3:// means from then on."""
    with ExitStack() as stack:

        def start(rates: Mapping[str, float], **options: Any) -> FaultyProxy:
            endpoint = rgw.environment["AWS_ENDPOINT_URL"]
            proxy = stack.enter_context(FaultyProxy(endpoint, rates, **options))
            stack.enter_context(rgw.with_changes(AWS_ENDPOINT_URL=proxy.endpoint).used())
            return proxy

        yield start
