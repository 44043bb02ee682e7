#!/usr/bin/env python3
"""Pictures of what a person sees in the Prefect UI, taken in a headless Chromium.

They show a running stack, which gets three small runs to show: one that mines drawn scenes, one
that fails on images that are gone, and a night. It takes minutes on a few cores.

    infra/install-chromium.sh
    infra/local/stack start /tmp/stack
    set -a; . /tmp/stack/environment; set +a
    diffmining bootstrap --profile local
    python infra/local/screenshots.py /tmp/pictures

PREFECT_API_URL and PREFECT_API_AUTH_STRING say which server; its workers must be on this machine.
FOLDER gets `data/`, the scenes and the results, and the pictures as PNG.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pyarrow as pa
import pyarrow.csv
from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun

from diffmining_core.images.pixels import content_id
from diffmining_core.images.street_scenes import write_dataset

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WIDTH, HEIGHT = 1280, 900
PATIENCE_SECONDS = 1800
PAGE_SECONDS = 300
"""For a page to come: the machine is busy with the runs."""
SETTLED_SECONDS = 3
"""After a page has said what it is waited for: what is drawn moves until then."""

SCENES_PER_COUNTRY = 8
SMALL: dict[str, Any] = {
    "size": 64,
    "finetune_steps": 10,
    "finetune_batch": 4,
    "held_out": 0,
    "preview_every": 0,
    "draws": 10,
    "k": 6,
    "top": 60,
    "shard_rows": 8,
    "shards_per_batch": 2,
    "device": "cpu",
}


def main(folder: Path) -> None:
    """Start the runs and take all pictures."""
    data = folder / "data"
    write_dataset(data / "scenes", SCENES_PER_COUNTRY, seed=1)
    with get_client(sync_client=True) as client, browser_page() as page:
        camera = Camera(page, folder)
        mine = client.read_deployment_by_name("mine/mine").id
        camera.take("deployments", "/deployments?limit=25", "typicality-batch")
        camera.take("form", f"/deployments/deployment/{mine}/run", "Finetune Steps")
        camera.take("pools", "/work-pools", "gpu")

        mining = start(
            client, "mine", {"dataset": str(data / "scenes"), "root": fresh(data, "mined")}
        )
        shown = wait_for(lambda: artifacts(client, mining.id, "running"), "typical-so-far")
        camera.take("run", f"/runs/flow-run/{mining.id}?tab=SubflowRuns", "typicality scenes")
        camera.take("run-artifacts", f"/runs/flow-run/{mining.id}?tab=Artifacts", "typical-so-far")
        camera.take("shards", f"/artifacts/artifact/{shown['typicality-shards']}", "waiting")
        camera.take("typical", f"/artifacts/artifact/{shown['typical-so-far']}", "highest so far")

        failing = start(
            client,
            "mine",
            {
                "dataset": str(with_images_gone(data)),
                "root": fresh(data, "failed"),
                "finetune_steps": 0,
            },
        )
        finished(client, failing.id)
        camera.take("failed", f"/runs/flow-run/{failing.id}?tab=Details", "units failed: shard")
        finished(client, mining.id)
        camera.take("finished", f"/runs/flow-run/{mining.id}?tab=TaskRuns", "evaluation")
        summary = artifacts(client, mining.id)["mine"]
        camera.take("summary", f"/artifacts/artifact/{summary}", "What is typical", whole=True)

        night = start(
            client, "nightly", {"dataset": str(data / "scenes"), "root": fresh(data, "nights")}
        )
        finished(client, night.id)
        digest = artifacts(client, night.id)["nightly"]
        camera.take("digest", f"/artifacts/artifact/{digest}", "Clusters that entered")


def with_images_gone(data: Path) -> Path:
    """A manifest of all scenes, some of whose images are not there any more."""
    folder = data / "scenes-some-gone"
    rows: list[dict[str, Any]] = []
    for image in sorted((data / "scenes").glob("*/*.png")):
        copy = folder / image.parent.name / image.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
        with Image.open(image) as opened:
            width, height = opened.size
        uri, label = copy.relative_to(folder).as_posix(), image.parent.name
        rows.append(
            {
                "uri": uri,
                "label": label,
                "image_id": content_id(image.read_bytes()),
                "width": width,
                "height": height,
            }
        )
    for row in rows[7:12]:
        (folder / row["uri"]).unlink()
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), folder / "images-gone.csv")
    return folder / "images-gone.csv"


def fresh(data: Path, name: str) -> str:
    """A root that nothing has been mined at."""
    return str(data / f"{name}-{datetime.now(UTC):%H%M%S}")


def start(client: SyncPrefectClient, flow: str, parameters: Mapping[str, Any]) -> FlowRun:
    """A run of the deployment FLOW/FLOW, which a worker takes up."""
    return client.create_flow_run_from_deployment(
        client.read_deployment_by_name(f"{flow}/{flow}").id,
        parameters={"parameters": {**SMALL, **parameters}},
    )


def artifacts(client: SyncPrefectClient, run_id: UUID, said: str = "") -> dict[str, UUID]:
    """The ids of a run's artifacts by key; none before one says so in its description."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    found = client.read_artifacts(artifact_filter=of_run, limit=200)
    if not any(said in (artifact.description or "") for artifact in found):
        return {}
    return {artifact.key: artifact.id for artifact in found if artifact.key}


def wait_for(look: Callable[[], dict[str, UUID]], wanted: str) -> dict[str, UUID]:
    """What `look` finds once the wanted one is among it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while wanted not in (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"{wanted} did not come in {PATIENCE_SECONDS} s")
        time.sleep(2)
    return found


def finished(client: SyncPrefectClient, run_id: UUID) -> None:
    """Wait until a run has ended."""
    wait_for(lambda: {"end": run_id} if _is_final(client, run_id) else {}, "end")


def _is_final(client: SyncPrefectClient, run_id: UUID) -> bool:
    state = client.read_flow_run(run_id).state
    return state is not None and state.is_final()


class Camera:
    """Opens pages of the UI and keeps pictures of them in a folder."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder

    def take(self, name: str, path: str, awaited: str, whole: bool = False) -> None:
        """A picture of the page once it shows `awaited`; whole: of all of it, however long."""
        self.page.goto(f"{ui_address()}/v2{path}")
        shown = self.page.get_by_text(awaited).first
        shown.wait_for()
        shown.scroll_into_view_if_needed()
        self.page.wait_for_timeout(1000 * SETTLED_SECONDS)
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=whole)
        print(self.folder / f"{name}.png")


def ui_address() -> str:
    """Where the UI of PREFECT_API_URL is."""
    api = urlsplit(os.environ["PREFECT_API_URL"])
    return f"{api.scheme}://{api.netloc}"


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser that has signed in, and that asks nothing of any other server."""
    chromium = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if chromium is None:
        sys.exit("no chromium here; infra/install-chromium.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(1000 * PAGE_SECONDS)
        page.route("**/*", only_from(ui_address()))
        if password := os.environ.get("PREFECT_API_AUTH_STRING"):
            page.goto(f"{ui_address()}/v2/login")
            page.locator("input[type=password]").fill(password)
            page.keyboard.press("Enter")
            page.wait_for_url("**/dashboard*")
        yield page
        browser.close()


def only_from(address: str) -> Callable[[Route], None]:
    """Answers what is asked of other addresses with nothing: the UI calls home."""

    def route(asked: Route) -> None:
        if asked.request.url.startswith((address, "data:")):
            asked.continue_()
        else:
            asked.abort()

    return route


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if "PREFECT_API_URL" not in os.environ:
        sys.exit("PREFECT_API_URL is not set: it should say which server's UI to show")
    main(Path(sys.argv[1]).resolve())
