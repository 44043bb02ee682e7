"""A real Prefect server in a real browser: the form of a run, and what a board shows of a run."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from PIL import Image
from prefect import flow, tags, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import Failure, note_failure
from flows.mine import mine
from flows.parameters import MineParameters
from tasks import board
from tasks.board import Board, Row
from tasks.typical import TypicalSoFar

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from mapped_root import IMAGES, OPTIONS, map_shard

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PASSWORD = "tests:of-the-ui"
SECONDS = 120
LABELS = (
    "almara",
    '<img src=http://evil.example/seen onerror="alert(1)">',
    "![picture](http://evil.example/seen) [link](javascript:alert(1)) | **bold**",
)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with its UI, its services and a password."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command, address.rpartition(":")[2]],
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "PREFECT_HOME": str(folder),
                "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
                "PREFECT_SERVER_UI_API_URL": f"{address}/api",
            },
        )
    try:
        _wait_until_healthy(f"{address}/api/health", server)
        settings = {PREFECT_API_URL: f"{address}/api", PREFECT_API_AUTH_STRING: PASSWORD}
        with pytest.MonkeyPatch.context() as environment, temporary_settings(settings):
            for setting, value in settings.items():
                environment.setenv(setting.name, value)
            yield address
            APILogHandler().flush()  # else the last lines look for the server that has gone
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_until_healthy(health: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the Prefect server did not start")


@pytest.fixture
def client(ui: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def page(browser: Browser, ui: str) -> Iterator[Page]:
    """A page that has signed in; it fails its test for a dialog or a request to evil.example."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    wrong: list[str] = []
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda asked: wrong.append(asked.url) if "evil" in asked.url else None)
    page.route(lambda url: not url.startswith(ui), lambda route: route.abort())
    page.goto(f"{ui}/v2/login")
    page.locator("input[type=password]").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard*")
    yield page
    context.close()
    assert wrong == []


def test_the_form_of_a_run_says_what_each_field_is_for_and_refuses_bad_values(
    page: Page, ui: str, client: SyncPrefectClient
) -> None:
    deployment = client.create_deployment(
        client.create_flow(mine),
        "mine",
        entrypoint="flows.mine.mine",
        parameter_openapi_schema=parameter_schema(mine).model_dump(),
        enforce_parameter_schema=True,
    )
    page.goto(f"{ui}/v2/deployments/deployment/{deployment}/run")
    page.get_by_text("Patches kept per label.").wait_for()
    form = page.locator("form").inner_text()
    for name, field in MineParameters.model_fields.items():
        assert field.description and field.description in form, name
    assert "Dataset\n" in form, "what must be given is not called optional"
    for name in ("Recipe", "Finetune Steps", "Patch Size"):
        assert f"{name} (Optional)\n" in form, "nor are numbers a choice of types"

    assert faults(page) == [], "all defaults are accepted"
    page.get_by_label(re.compile(r"^Draws(?! Spread)")).fill("1")
    page.get_by_role("button", name="Submit").click()
    assert faults(page) == ["Value must be greater than or equal to 2."]
    assert client.read_flow_runs() == []


def faults(page: Page) -> list[str]:
    """What the browser says against the fields of the form."""
    said = page.locator("input, textarea").evaluate_all(
        "all => all.map(one => one.validationMessage).filter(message => message)"
    )
    assert isinstance(said, list)
    return said


def test_a_running_stage_shows_its_shards_and_pictures_and_runs_no_label(
    page: Page, ui: str, client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "UPDATE_SECONDS", 0.5)
    seen = Event()
    kept = Thread(target=copy_context().run, args=(half_measured, tmp_path, seen))
    kept.start()
    try:
        table = artifact(client, "typicality-shards", "1 failed, 1 running, 2 done")
        typical = artifact(client, "typical-so-far", "in 2 of 4 shards")
        for version in ("/v2", ""):
            page.goto(f"{ui}{version}/artifacts/artifact/{table}")
            page.get_by_text("running", exact=True).wait_for()
            assert page.get_by_text("cannot be read").count() > 0
            page.goto(f"{ui}{version}/artifacts/artifact/{typical}")
            pictures = page.locator("img[src^='data:image/png']")
            pictures.first.wait_for()
            widths = pictures.evaluate_all("all => all.map(image => image.naturalWidth)")
            assert len(widths) == len(LABELS) and min(widths) > 100
            said = page.locator("body").inner_text()
            for label in LABELS:
                assert label in said
            page.goto(f"{ui}{version}/artifacts")
            page.get_by_text("typical-so-far").first.wait_for()
    finally:
        seen.set()
        kept.join()


@flow(name="mine")
def half_measured(folder: Path, seen: Event) -> None:
    """Two shards are measured, one fails, one is at work until all has been seen."""
    images = drawn_images(folder)
    planned = [map_shard(folder / "planned", n, LABELS, folder=images) for n in range(4)]
    root = str(folder / "root")
    for number in range(2):
        map_shard(root, number, LABELS, folder=images)
    rows = [
        Row(key, shard.name, f"typicality {shard.name}", shard.images, {"labels": LABELS[1]})
        for shard, key in planned
    ]
    typical = TypicalSoFar(root, {key: shard for shard, key in planned}, OPTIONS, size=64)

    @task
    def at_work() -> None:
        note_failure(
            open_root(root), "typicality", planned[2][1], Failure(f"{LABELS[1]} cannot be read")
        )
        seen.wait(2 * SECONDS)

    @flow(name="typicality-batch")
    def batch() -> None:
        at_work.with_options(task_run_name=rows[3].task_run)()

    title = f"{LABELS[2]} → root"
    with Board(root, "typicality", "shard", title, "root:x", rows, set(), typical), tags("root:x"):
        batch()


def drawn_images(folder: Path) -> Path:
    """Noise for each shard."""
    rng = np.random.default_rng(0)
    for number in range(4):
        (folder / "images" / str(number)).mkdir(parents=True)
        for row in range(IMAGES):
            pixels = rng.integers(0, 256, (64, 80, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / str(number) / f"{row}.png")
    return folder / "images"


def artifact(client: SyncPrefectClient, key: str, said: str) -> UUID:
    """The artifact once its description says so."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for found in client.read_artifacts(artifact_filter=wanted):
            if found.description and said in found.description.replace("\\", ""):
                return found.id
        time.sleep(0.3)
    raise TimeoutError(f"{key} does not say: {said}")
