"""Runs that come by themselves: on a schedule in its time zone, and after an event."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from bootstrapped_server import TIME_ZONE, Server
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule

pytestmark = pytest.mark.usefixtures("first_said")

Found = TypeVar("Found")


def soon(look: Callable[[], Found], seconds: float = 60) -> Found:
    """What a look finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return found


def runs_of(client: SyncPrefectClient, deployment: str) -> list[FlowRun]:
    name = DeploymentFilterName(any_=[deployment])
    return client.read_flow_runs(deployment_filter=DeploymentFilter(name=name))


def test_a_cron_deployment_gets_runs_in_its_time_zone(server: Server) -> None:
    with server.client() as client:
        runs = soon(lambda: [run for run in runs_of(client, "nightly") if run.auto_scheduled])
        assert not [run for run in runs_of(client, "gc") if run.auto_scheduled], "it is off"
        (schedule,) = client.read_deployment_by_name("nightly/nightly").schedules
    assert isinstance(schedule.schedule, CronSchedule)
    assert schedule.schedule.timezone == TIME_ZONE
    for run in runs:
        assert run.expected_start_time and run.expected_start_time > datetime.now(UTC)
        local = run.expected_start_time.astimezone(ZoneInfo(TIME_ZONE))
        assert (local.hour, local.minute) == (2, 0)


@pytest.mark.parametrize(
    "shard",
    ["s3://datasets/photos/part-7.parquet", "s3://b/{{ event.id }} $(id)'\";<b>\\ü.parquet"],
)
def test_a_shard_that_lands_is_mined_with_the_deployments_own_parameters(
    server: Server, shard: str
) -> None:
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "diffmining.shard.landed",
        "resource": {"prefect.resource.id": shard},
    }
    with server.client() as client:
        client.request("POST", "/events", json=[event]).raise_for_status()
        (run,) = soon(
            lambda: [
                run for run in runs_of(client, "nightly") if run.parameters.get("shard") == shard
            ]
        )
        nightly = client.read_deployment_by_name("nightly/nightly")
    assert run.parameters == {**nightly.parameters, "shard": shard}
    assert run.parameters["parameters"]["dataset"] == "/nowhere/photos"
    assert run.state_name in ("Scheduled", "Late")
