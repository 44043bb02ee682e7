"""The poller against a real server: what it sees, what it starts, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Failed, Scheduled

from diffmining_core.errors import InputError
from flows.nightly import nightly
from flows.parameters import MineParameters, WatchParameters
from flows.watch import watch_shards

Make = Callable[..., MineParameters]


@pytest.fixture
def photos(dataset: Path, first_run: tuple[Path, dict[str, Any], int]) -> Iterator[Path]:
    """The dataset of the mined root, with what a test added taken away again."""
    before = set(dataset.rglob("*"))
    yield dataset
    for added in sorted(set(dataset.rglob("*")) - before, reverse=True):
        added.unlink()


@pytest.fixture
def deploy(prefect_api: str, root: Path, parameters: Make) -> Callable[..., str]:
    """Makes a nightly deployment of the mined root; returns its name."""

    def made(**given: Any) -> str:
        name = f"nightly-{uuid4().hex[:8]}"
        asked = given or {"parameters": parameters(root).model_dump(mode="json")}
        with get_client(sync_client=True) as client:
            client.create_deployment(client.create_flow(nightly), name=name, parameters=asked)
        return f"nightly/{name}"

    return made


def poll(deployment: str, soon: int = 30) -> dict[str, Any]:
    return watch_shards(WatchParameters(deployment=deployment, soon=soon))


def read(run: str) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run))


def end(run: str, state: Any) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), state, force=True)


def test_what_is_new_is_started_once_and_then_waited_for(
    deploy: Callable[..., str], root: Path, parameters: Make, photos: Path
) -> None:
    deployment = deploy()
    first = poll(deployment)
    assert first["new"], "no night has told of this root"
    run = read(first["started"])
    assert run.state and run.state.is_scheduled() and run.parent_task_run_id is None
    assert run.parameters["parameters"]["root"] == str(root)
    assert poll(deployment) == {"new": True, "started": None, "on_its_way": first["started"]}

    end(first["started"], Failed())
    assert poll(deployment) == {"new": True, "started": None, "ended": first["started"]}

    nightly(run.parameters["parameters"])
    end(first["started"], Completed())
    assert poll(deployment) == {"new": False, "started": None}

    (photos / "Almara" / "more.png").write_bytes(b"whatever: it is not read here")
    second = poll(deployment)
    assert second["new"] and second["started"] not in (None, first["started"])


def test_a_run_long_after_is_not_waited_for(deploy: Callable[..., str]) -> None:
    deployment = deploy()
    with get_client(sync_client=True) as client:
        later = client.create_flow_run_from_deployment(
            client.read_deployment_by_name(deployment).id,
            state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(minutes=45)),
        )
    assert poll(deployment, soon=60)["on_its_way"] == str(later.id)
    assert poll(deployment, soon=30)["started"]


def test_a_deployment_that_cannot_be_watched_is_named(deploy: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="there is no deployment 'nightly/none'"):
        poll("nightly/none")
    empty = deploy(shard=None)
    with pytest.raises(InputError, match=f"deployment '{empty}' .* but dataset is missing"):
        poll(empty)
