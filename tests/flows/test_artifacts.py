"""What `mine` leaves in the Prefect UI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from flows.mine import mine
from flows.parameters import MineParameters

FirstRun = tuple[Path, dict[str, Any], int]


def run_at(root: Path) -> tuple[FlowRun, dict[str, Artifact]]:
    """The latest run of `mine` at a root, and its artifacts by key."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=200)
        run = next(one for one in runs if _is_of(one, root))
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        found = client.read_artifacts(artifact_filter=of_run, limit=200)
    return run, {one.key: one for one in found if one.key}


def _is_of(run: FlowRun, root: Path) -> bool:
    asked = run.parameters.get("parameters", {})
    return run.name.startswith("mine ") and asked.get("root") == str(root)


def pictures(artifact: Artifact) -> int:
    return str(artifact.data).count("](data:image/png;base64,")


def test_a_run_shows_its_shards_and_what_is_typical(first_run: FirstRun) -> None:
    root, summary, _ = first_run
    run, artifacts = run_at(root)
    assert run.name == "mine streets → root"
    assert artifacts.keys() == {
        "typicality-progress", "typicality-shards", "typical-so-far", "features-progress",
        "features-labels", "mine",
    }  # fmt: skip
    first, *shards = json.loads(str(artifacts["typicality-shards"].data))
    assert (first["shard"], first["state"]) == ("all 4", "4 done")
    assert sorted(row["model"] for row in shards) == ["finetuned"] * 3 + ["not finetuned"]
    assert sum(row["images"] for row in shards if row["model"] == "finetuned") == 16
    _, *labels = json.loads(str(artifacts["features-labels"].data))
    assert {row["label"] for row in labels} == summary["labels"].keys()
    assert pictures(artifacts["mine"]) == pictures(artifacts["typical-so-far"]) == 4
    for artifact in artifacts.values():
        assert "streets → root" in str(artifact.description)
        assert len(str(artifact.data)) < 200_000


def test_a_rerun_that_finds_everything_has_no_board(
    root: Path, parameters: Callable[..., MineParameters]
) -> None:
    mine(parameters(root))
    _, artifacts = run_at(root)
    assert artifacts.keys() == {"mine"}
    assert pictures(artifacts["mine"]) == 4
