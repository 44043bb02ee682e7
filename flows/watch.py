"""Look for what has come to a dataset and was not told by an event, and start the nightly run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from diffmining_core.errors import InputError
from flows.nightly import new_listing
from flows.parameters import NightlyParameters, WatchParameters
from tasks.digest import nights

OPEN = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


@flow(name="watch-shards", flow_run_name="watch {parameters.deployment}", log_prints=True)
def watch_shards(parameters: WatchParameters) -> dict[str, Any]:
    """Start the nightly deployment if its dataset has what the last night does not tell of.

    Only the dataset's listing is read, no image. Nothing is started while a run of the deployment
    is on its way, nor twice for the same listing: a run that failed is not tried again and again.
    """
    logger = get_run_logger()
    deployment = found_deployment(parameters.deployment)
    wanted = nightly_parameters(deployment, parameters.deployment)
    made = nights(wanted.root)
    last = made[-1] if made else None
    found = new_listing(wanted, last)
    if found is None:
        logger.info("Nothing new in %s", wanted.dataset)
        return {"new": False, "started": None}
    on_its_way = open_runs(deployment, timedelta(minutes=parameters.soon))
    if on_its_way:
        run = on_its_way[0]
        logger.info("New in %s; %s is on its way already", wanted.dataset, run.name)
        return {"new": True, "started": None, "on_its_way": str(run.id)}
    # Of what is new against the last night: the same listing may come back after another night.
    key = f"watch-shards {wanted.root} {last.key if last else ''} {found.digest}"
    if before := runs_of(FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))):
        run = before[0]
        logger.warning(
            "New in %s, but %s, started for it, ended %s; see why, and retry it",
            wanted.dataset,
            run.name,
            run.state_name,
        )
        return {"new": True, "started": None, "ended": str(run.id)}
    begun = run_deployment(deployment.id, timeout=0, as_subflow=False, idempotency_key=key)
    run = cast(FlowRun, begun)  # here is no event loop that it would have to be awaited in
    logger.info("New in %s: started %s", wanted.dataset, run.name)
    return {"new": True, "started": str(run.id)}


def found_deployment(name: str) -> DeploymentResponse:
    """The deployment of this name; InputError if there is none."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(name)
        except ObjectNotFound as error:
            raise InputError(
                f"there is no deployment {name!r}; make it with `diffmining bootstrap`"
            ) from error


def nightly_parameters(deployment: DeploymentResponse, name: str) -> NightlyParameters:
    """What the deployment mines; InputError if it does not say."""
    try:
        return NightlyParameters(**deployment.parameters.get("parameters", {}))
    except (ValidationError, TypeError) as error:
        said = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ("parameters",)
        raise InputError(
            f"deployment {name!r} should have the parameters of a nightly run, dataset and root at "
            f"least, but {'.'.join(map(str, said))} is missing or wrong; set them in its profile"
        ) from error


def open_runs(deployment: DeploymentResponse, soon: timedelta) -> list[FlowRun]:
    """Its runs that are running, or are to start soon; the earliest first."""
    return runs_of(
        FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN)),
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                {"before_": datetime.now(UTC) + soon}
            ),
        )
    )


def runs_of(wanted: FlowRunFilter) -> list[FlowRun]:
    """The runs that pass the filter, the earliest to start first."""
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC
        )
