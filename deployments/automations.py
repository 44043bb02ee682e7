"""What the server does by itself when an event comes, or fails to come."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.orphans import NO_HEARTBEAT

HEARTBEAT = "prefect.flow-run.heartbeat"
SHARD_LANDED = "diffmining.shard.landed"
"""Its resource id is the shard's URI."""

MISSED_HEARTBEATS = 3
"""After so many a run counts as dead: a busy machine may be late with one or two."""

WITHOUT_HEARTBEATS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended",
                      "AwaitingRetry", "AwaitingConcurrencySlot", "Late", "Scheduled")  # fmt: skip
"""The states that say why no more heartbeats come."""

BEFORE_RUNNING = ("Pending", "Submitting", "InfrastructurePending")
START = timedelta(minutes=30)
"""Enough for a node that is added for the run, and for an image of many GB."""


def dead_runs_crash(heartbeat_seconds: int) -> AutomationCore:
    """A run whose process or machine is gone says so, instead of `Running` for ever."""
    seconds = MISSED_HEARTBEATS * heartbeat_seconds
    return AutomationCore(
        name="diffmining: dead runs are Crashed",
        description="A dead run is not started again by itself: run it again, it goes on from "
        "what is finished.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in WITHOUT_HEARTBEATS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"{NO_HEARTBEAT} for {seconds} s: its process or machine is gone. Run it "
                "again, it goes on from what is finished.",
            )
        ],
    )


def lost_runs_crash() -> AutomationCore:
    """A run that a worker took and lost before it began says so, and lets go of its GPU."""
    return AutomationCore(
        name="diffmining: lost runs are Crashed",
        description="A worker may die between taking a run and starting its process.",
        trigger=EventTrigger(
            after={f"prefect.flow-run.{state}" for state in BEFORE_RUNNING},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=START,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"It did not start within {START.seconds // 60} minutes of being taken: "
                "its worker is gone, or found no place for it. Run it again.",
            )
        ],
    )


def landed_shards_are_mined(nightly: UUID) -> AutomationCore:
    """A shard that lands is mined at once, by the deployment `nightly` of this id."""
    return AutomationCore(
        name="diffmining: landed shards are mined",
        description="Events may get lost; watch-shards finds what they did not tell.",
        trigger=EventTrigger(expect={SHARD_LANDED}, posture=Posture.Reactive, threshold=1),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=nightly,
                job_variables=None,
                # Beside `parameters`, not in it: a run's parameters replace the deployment's one
                # by one, and `parameters` is one.
                parameters={"shard": "{{ event.resource.id }}"},
            )
        ],
    )
