from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from pydantic import ValidationError

from diffmining_core.store.ledger import Attempt, complete, published, retract
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import open_run
from diffmining_core.store.units import Unit
from flows.gc import gc
from flows.parameters import GcParameters

UNITS = [Unit("typicality", "1", (f"images {number}",), {}) for number in range(3)]


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("maps/values", bytes(range(256)))


@pytest.fixture
def opened(prefect_api: str, tmp_path: Path) -> Root:
    """A root with three units, of which the data of one are named by no manifest."""
    root = open_root(str(tmp_path / "root"))
    open_run(root, {"dataset": "/data/streets"})
    for unit in UNITS:
        complete(root, unit, produce)
    retract(root, "typicality", UNITS[0].key)
    return root


def table(root: str) -> list[dict[str, Any]]:
    """The rows of the last run's artifact."""
    with get_client(sync_client=True) as client:
        newest = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["gc"])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )[0]
    assert str(newest.description).startswith(root)
    rows: list[dict[str, Any]] = json.loads(str(newest.data))
    return rows


def test_it_lists_and_removes_only_when_told(opened: Root) -> None:
    leftover = Path(opened.url, "typicality", UNITS[0].key)
    listed = gc(GcParameters(root=opened.url, older_than="0s"))
    assert (listed["leftovers"], listed["files"], listed["bytes"]) == (1, 1, 256)
    assert leftover.exists() and not listed["removed"]
    (row,) = table(opened.url)
    assert (row["what"], row["files"], row["size"]) == ("attempt", 1, "256B")
    assert row["where"].startswith(f"typicality/{UNITS[0].key}/attempt-")

    assert gc(GcParameters(root=opened.url))["leftovers"] == 0, "it is younger than a week"
    removed = gc(GcParameters(root=opened.url, older_than="0s", delete=True))
    assert (removed["leftovers"], removed["removed"]) == (1, True)
    assert not leftover.exists()
    assert published(opened, "typicality") == {unit.key for unit in UNITS[1:]}
    assert gc(GcParameters(root=opened.url, older_than="0s", delete=True))["leftovers"] == 0
    assert table(opened.url) == []


@pytest.mark.parametrize("age", ["", "7", "d", "-1d", "1y", "7d2h"])
def test_other_ages_are_refused_in_the_form(age: str) -> None:
    with pytest.raises(ValidationError, match="older_than"):
        GcParameters(root="/root", older_than=age)
