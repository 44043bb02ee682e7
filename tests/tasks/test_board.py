"""The board of a stage in the Prefect UI, kept by a real flow run on a real server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from mapped_root import IMAGES, OPTIONS, map_shard
from PIL import Image
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import Failure, note_failure
from tasks import board
from tasks.board import ROWS, Board, Row
from tasks.patches import patches
from tasks.typical import TypicalSoFar

pytestmark = pytest.mark.usefixtures("prefect_api")

STAGE = "typicality"
HOSTILE = "<img src=http://evil.example/x>"
LABELS = ("almara", HOSTILE)
TITLE = "streets → [root](http://evil.example)"
SECONDS = 30

Plan = Sequence[tuple[Shard, str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "UPDATE_SECONDS", 0.1)


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise for shards 0 to 3."""
    rng = np.random.default_rng(0)
    for number in range(4):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        for row in range(IMAGES):
            pixels = rng.integers(0, 256, (64, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / str(number) / f"{row}.png")
    return tmp_path / "images"


@pytest.fixture
def plan(tmp_path: Path, images: Path) -> Plan:
    """Four shards and the keys of the maps they are to have."""
    return [map_shard(tmp_path / "planned", n, LABELS, folder=images) for n in range(4)]


def measure(root: Path, number: int, images: Path) -> None:
    map_shard(root, number, LABELS, folder=images)


def rows(plan: Plan) -> list[Row]:
    return [
        Row(key, shard.name, f"typicality {shard.name}", shard.images, {"labels": HOSTILE})
        for shard, key in plan
    ]


def watched(
    root: Path,
    plan: Plan,
    within: Callable[[], None],
    there: Collection[str] = (),
    typical: TypicalSoFar | None = None,
) -> UUID:
    """Run `within` in a flow that keeps a board; the id of its run."""

    @flow(name="watched")
    def watched() -> str:
        with Board(str(root), STAGE, "shard", TITLE, "root:x", rows(plan), set(there), typical):
            within()
        return str(flow_run.id)

    return UUID(watched())


def artifacts(client: SyncPrefectClient, run_id: UUID) -> dict[str | None, Artifact]:
    """Those of a run by key; no key is there twice."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    found = client.read_artifacts(artifact_filter=of_run, limit=200)
    assert len({artifact.key for artifact in found}) == len(found)
    return {artifact.key: artifact for artifact in found}


def description(artifact: Artifact) -> str:
    assert artifact.description
    return artifact.description


def table(artifact: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(str(artifact.data))
    return rows


def eventually(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_board_follows_the_ledger_while_the_run_goes_on(
    tmp_path: Path, images: Path, plan: Plan, client: SyncPrefectClient
) -> None:
    root, keys = tmp_path / "root", [key for _, key in plan]
    names = [shard.name for shard, _ in plan]
    measure(root, 0, images)
    opened = open_root(str(root))
    note_failure(opened, STAGE, keys[3], Failure("of the last run", noted="long ago"))
    shards = {key: shard for shard, key in plan}
    typical = TypicalSoFar(str(root), shards, OPTIONS, size=64)
    seen: list[dict[str | None, Artifact]] = []

    def shown(key: str, said: str) -> bool:
        seen.append(artifacts(client, UUID(flow_run.id)))
        return key in seen[-1] and said in str(seen[-1][key].description)

    def within() -> None:
        eventually(lambda: shown("typical-so-far", r"in 1 of 4 shards"))
        time.sleep(1)  # manifests tell the second they were made in: the latest comes first
        measure(root, 1, images)
        note_failure(opened, STAGE, keys[2], Failure(f"{HOSTILE} cannot be read"))
        eventually(lambda: shown("typicality-shards", "1 failed"))
        eventually(lambda: shown("typical-so-far", r"in 2 of 4 shards"))
        measure(root, 2, images)  # tried again
        measure(root, 3, images)

    run_id = watched(root, plan, within, {keys[0]}, typical)

    halfway, last = seen[-1], artifacts(client, run_id)
    kept = {"typicality-progress", "typicality-shards", "typical-so-far"}
    assert halfway.keys() == last.keys() == kept
    assert {key: one.id for key, one in halfway.items()} == {k: one.id for k, one in last.items()}

    progress = halfway["typicality-progress"]
    assert progress.data == 50
    assert re.search(
        r"2 of 4 shards\\, 18 of 36 images\\, [\d\\.]+ images a second\\, ", description(progress)
    )
    first, *others = table(halfway["typicality-shards"])
    assert first == {
        "shard": "all 4", "state": "1 failed, 2 done, 1 waiting", "images": 36, "set aside": 0,
        "seconds": first["seconds"], "device": "", "labels": "", "why": "",
    }  # fmt: skip
    assert [row["state"] for row in others] == ["failed", "done", "done", "waiting"]
    assert [row["shard"] for row in others] == [names[2], names[1], names[0], names[3]]
    assert others[0]["why"] == "<\u200bimg src=http://evil.example/x> cannot be read"
    assert others[0]["labels"] == "<\u200bimg src=http://evil.example/x>"
    assert others[1]["device"] == "cpu"
    assert f"failed\\: {names[2]}" in description(halfway["typicality-shards"])

    assert last["typicality-progress"].data == 100
    assert {row["state"] for row in table(last["typicality-shards"])} == {"4 done", "done"}
    for artifact in (*halfway.values(), *last.values()):
        assert r"\[root\]\(http\:\/\/evil\.example\)" in description(artifact)
        assert "<img" not in f"{artifact.data}{artifact.description}".replace(r"\<", "")
        assert len(str(artifact.data)) < 200_000
    assert str(last["typical-so-far"].data).count("data:image/png;base64,") == len(LABELS)

    made = [unit.key for unit in typical.made if unit.computed]
    assert len(set(made)) == len(made) == typical.added
    found = patches.fn(str(root), keys, OPTIONS, 0)
    assert {unit.key for unit in found if not unit.computed} == set(made), "nothing is made twice"
    assert published(opened, "patches") == {unit.key for unit in found}


def test_where_nothing_is_missing_there_is_no_board(
    tmp_path: Path, plan: Plan, client: SyncPrefectClient
) -> None:
    there = {key for _, key in plan}
    run_id = watched(tmp_path / "planned", plan, lambda: None, there)
    assert artifacts(client, run_id) == {}


def test_what_goes_wrong_in_it_is_said_once_and_fails_nothing(
    tmp_path: Path, plan: Plan, client: SyncPrefectClient
) -> None:
    root = tmp_path / "planned"
    (root / "manifests" / STAGE / f"{plan[0][1]}.json").write_text("no manifest")
    run_id = watched(root, plan, lambda: time.sleep(1))
    APILogHandler().flush()
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    eventually(lambda: len(client.read_logs(of_run)) > 0)
    said = [log.message for log in client.read_logs(of_run) if "is not up to date" in log.message]
    assert len(said) == 1
    assert "is not a valid manifest" in said[0]
    state = client.read_flow_run(run_id).state
    assert state and state.is_completed()


def test_a_shard_whose_patches_cannot_be_made_takes_no_picture_from_others(
    tmp_path: Path, images: Path, plan: Plan, client: SyncPrefectClient
) -> None:
    root = tmp_path / "planned"
    opened = open_root(str(root))
    (folder,) = (root / STAGE / plan[0][1]).iterdir()
    (folder / "maps.zarr" / "hw" / "c" / "0" / "0").write_bytes(b"")
    (images / "1" / "0.png").unlink()
    shards = {key: shard for shard, key in plan}
    typical = TypicalSoFar(str(root), shards, OPTIONS, size=64)
    run_id = watched(root, plan, lambda: time.sleep(1), {plan[0][1]}, typical)
    shown = artifacts(client, run_id)["typical-so-far"]
    assert "in 3 of 4 shards" in description(shown)
    assert str(shown.data).count("data:image/png;base64,") == len(LABELS)
    assert len(published(opened, "patches")) == 3


def test_a_thousand_shards_are_one_short_table(
    tmp_path: Path, images: Path, client: SyncPrefectClient
) -> None:
    shard, key = map_shard(tmp_path / "root", 0, LABELS, folder=images)
    many = [(shard, key), *((shard, f"{number:064}") for number in range(1803))]
    run_id = watched(tmp_path / "root", many, lambda: None)
    artifact = artifacts(client, run_id)["typicality-shards"]
    first, *others = table(artifact)
    assert first["shard"] == "all 1,804"
    assert first["state"] == "1 done, 1,803 waiting"
    assert len(others) == ROWS
    assert len(str(artifact.data)) < 40_000
