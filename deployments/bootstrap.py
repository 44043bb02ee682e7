"""Give a Prefect server what it needs to run the flows, and change only what differs.

Pools, the profile (as a Prefect variable), the deployments of `prefect.yaml`, automations. Nothing
is removed, nor is what an operator sets by hand changed: a paused pool, a disabled automation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentScheduleUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values

from deployments.automations import (
    dead_runs_crash,
    landed_shards_are_mined,
    lost_runs_crash,
)
from deployments.profile import VARIABLE, Pools, Profile, load_profile
from diffmining_core.errors import InputError
from diffmining_core.images.reach import ALLOW
from flows.forms import refusal

DEPLOYMENTS = Path(__file__).parent / "prefect.yaml"
POOLS = {
    "cpu": "Flows that plan, wait and report, and those that need no GPU.",
    "gpu": "Flows that hold a GPU each; at most as many at once as there are GPUs.",
}
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
PATIENCE = {
    # With growing pauses that is four minutes: for a restart of the server, or of its database,
    # meanwhile it answers 500. With Prefect's defaults one such answer ends a run.
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}
NOT_YET = UUID(int=0)
"""Stands for a deployment that a dry run does not make."""

Object = Mapping[str, Any]
"""What decides an object, by the names that a report of changes calls it."""


@dataclass(frozen=True)
class Settled:
    """What has been done, or would be, about an object of the server."""

    kind: str
    name: str
    done: str


def bootstrap(profile_name: str, dry_run: bool) -> list[Settled]:
    """Make or change what differs from the profile; a line is printed for each object, and told.

    InputError for what is wrong with the profile, the server's address or the password.
    """
    profile = load_profile(profile_name)
    pools = [wanted_pool(name, profile.pools) for name in POOLS]
    deployments = read_deployments(profile)
    with server() as client:
        run = Bootstrap(client, dry_run)
        # What others need comes first: deployments name pools, automations a deployment.
        for pool in pools:
            run.pool(pool)
        run.variable(profile)
        for deployment in deployments:
            run.deployment(deployment)
        run.automation(dead_runs_crash(profile.pools.heartbeat_seconds))
        run.automation(lost_runs_crash())
        run.automation(landed_shards_are_mined(run.deployment_id("nightly/nightly")))
        run.name_others()
    return run.settled


class Bootstrap:
    """One go through the objects of a server."""

    def __init__(self, client: SyncPrefectClient, dry_run: bool) -> None:
        self.client = client
        self.dry_run = dry_run
        self.settled: list[Settled] = []

    def settle(
        self,
        kind: str,
        name: str,
        there: Object | None,
        wanted: Object,
        make: Callable[[], object],
    ) -> None:
        """Make an object or change it, if that is needed, and say which."""
        changed = [field for field in wanted if there and there[field] != wanted[field]]
        if there and not changed:
            self.say(kind, name, "as it was")
            return
        if not self.dry_run:
            make()
        would = "would be " if self.dry_run else ""
        done = f"updated ({', '.join(changed)})" if there else "created"
        self.say(kind, name, would + done)

    def say(self, kind: str, name: str, done: str) -> None:
        """Note what has been done about an object, and print it as a line of the report."""
        self.settled.append(Settled(kind, name, done))
        print(f"{kind:<12}{name:<42}{done}")

    def pool(self, wanted: WorkPoolCreate) -> None:
        """A work pool; InputError if there is one of another kind, which cannot be changed."""
        decisive = ("description", "concurrency_limit", "base_job_template")
        fields = wanted.model_dump(mode="json", include=set(decisive))
        try:
            there = self.client.read_work_pool(wanted.name)
        except ObjectNotFound:
            self.settle(
                "pool", wanted.name, None, fields, lambda: self.client.create_work_pool(wanted)
            )
            return
        if there.type != wanted.type:
            raise InputError(
                f"the work pool {wanted.name} should run on {wanted.type}, but is there for "
                f"{there.type}, which Prefect cannot change: `prefect work-pool delete "
                f"{wanted.name}`, then run this again"
            )
        self.settle(
            "pool",
            wanted.name,
            there.model_dump(mode="json", include=set(decisive)),
            fields,
            lambda: self.client.update_work_pool(wanted.name, WorkPoolUpdate(**fields)),
        )

    def variable(self, profile: Profile) -> None:
        """The profile, from which `prefect deploy` fills in what differs between places."""
        value = profile.model_dump(mode="json")
        there = self.client.read_variable_by_name(VARIABLE)

        def make() -> None:
            if there:
                self.client.update_variable(VariableUpdate(name=VARIABLE, value=value))
            else:
                self.client.create_variable(VariableCreate(name=VARIABLE, value=value))

        kept = {"value": there.value} if there else None
        self.settle("variable", VARIABLE, kept, {"value": value}, make)

    def deployment(self, wanted: RunnerDeployment) -> None:
        """A deployment; InputError if the server refuses it."""
        there = self.read_deployment(wanted.full_name)

        def make() -> None:
            try:
                wanted.apply()
            except DeploymentApplyError as error:
                raise InputError(f"deployment {wanted.full_name}: {error}") from error

        kept = deployment_there(there) if there else None
        self.settle("deployment", wanted.full_name, kept, deployment_wanted(wanted), make)

    def read_deployment(self, full_name: str) -> DeploymentResponse | None:
        """The deployment of this name, if there is one."""
        try:
            return self.client.read_deployment_by_name(full_name)
        except ObjectNotFound:
            return None

    def deployment_id(self, full_name: str) -> UUID:
        """Of a deployment that has been settled."""
        there = self.read_deployment(full_name)
        return there.id if there else NOT_YET

    def automation(self, wanted: AutomationCore) -> None:
        """An automation; one that an operator has disabled stays so."""
        there = next(iter(self.client.read_automations_by_name(wanted.name)), None)

        def make() -> None:
            if there:
                changed = wanted.model_copy(update={"enabled": there.enabled})
                self.client.update_automation(there.id, changed)
            else:
                self.client.create_automation(wanted)

        kept = automation_fields(there) if there else None
        self.settle("automation", wanted.name, kept, automation_fields(wanted), make)

    def name_others(self) -> None:
        """Say what else is there."""
        others = [
            *(("pool", pool.name) for pool in self.client.read_work_pools()),
            *(("variable", variable.name) for variable in self.client.read_variables()),
            *(("deployment", name) for name in self.deployment_names()),
            *(("automation", automation.name) for automation in self.client.read_automations()),
        ]
        seen = {(one.kind, one.name) for one in self.settled}
        for kind, name in others:
            if (kind, name) not in seen:
                self.say(kind, name, "not ours, left alone")

    def deployment_names(self) -> list[str]:
        """FLOW/DEPLOYMENT of all that are there."""
        deployments = self.client.read_deployments()
        flows = {
            id_: self.client.read_flow(id_).name for id_ in {found.flow_id for found in deployments}
        }
        return [f"{flows[found.flow_id]}/{found.name}" for found in deployments]


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the server at PREFECT_API_URL; InputError if it does not answer, or not us."""
    url = PREFECT_API_URL.value()
    if not url:
        raise InputError(
            "PREFECT_API_URL is not set: it should say which Prefect server, such as "
            "http://127.0.0.1:4200/api"
        )
    parts = urlsplit(url)
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.TransportError as error:
        raise InputError(
            f"no Prefect server answers at {place} ({error}): start it, or set PREFECT_API_URL"
        ) from error
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"the Prefect server at {place} (PREFECT_API_URL) refuses the user or password: "
                "set PREFECT_API_AUTH_STRING to that of the server"
            ) from error
        if status == 404:
            raise InputError(
                f"at {place} (PREFECT_API_URL) is no Prefect server: the address ends in /api"
            ) from error
        raise


def wanted_pool(name: str, pools: Pools) -> WorkPoolCreate:
    """The work pool `cpu` or `gpu`; InputError if there is no template, or no such variable in it.

    The profile's job variables become the template's defaults.
    """
    file = Path(pools.templates) / f"{pools.infrastructure}-{name}.json"
    try:
        template = json.loads(file.read_text(encoding="utf-8"))
        variables = template["variables"]["properties"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} should be a base job template such as `prefect work-pool "
            f"get-default-base-job-template --type {pools.infrastructure}` prints, but: {error!r}"
        ) from error
    given = {**pools.job_variables}
    given["env"] = {
        **PATIENCE,
        **variables.get("env", {}).get("default", {}),
        **given.get("env", {}),
        HEARTBEAT: str(pools.heartbeat_seconds),
        **({ALLOW: json.dumps(pools.allow)} if pools.allow else {}),
    }
    for variable, default in given.items():
        if variable not in variables:
            raise InputError(
                f"the profile's `pools.job_variables.{variable}` is no variable of {file.name}: it "
                f"has {', '.join(variables)}"
            )
        variables[variable]["default"] = default
    return WorkPoolCreate(
        name=name,
        description=POOLS[name],
        type=pools.infrastructure,
        base_job_template=template,
        concurrency_limit=pools.gpus if name == "gpu" else pools.cpu_runs,
    )


def read_deployments(profile: Profile) -> list[RunnerDeployment]:
    """The deployments of `prefect.yaml`; InputError for parameters that a flow does not take."""
    text = DEPLOYMENTS.read_text(encoding="utf-8")
    values = {"profile": profile.model_dump(mode="json")}
    return [
        as_deployment(spec) for spec in apply_values(yaml.safe_load(text), values)["deployments"]
    ]


def as_deployment(spec: dict[str, Any]) -> RunnerDeployment:
    """What `prefect deploy` makes of an entry of `prefect.yaml`."""
    flow = load_flow(spec["entrypoint"])
    limit = spec.get("concurrency_limit")
    deployment = RunnerDeployment.from_flow(
        flow,
        spec["name"],
        description=spec["description"],
        tags=spec["tags"],
        version_type=spec["version_type"],
        enforce_parameter_schema=spec["enforce_parameter_schema"],
        work_pool_name=spec["work_pool"]["name"],
        parameters=spec.get("parameters", {}),
        concurrency_limit=ConcurrencyLimitConfig(**limit) if limit else None,
        schedules=[
            Cron(plan["cron"], timezone=plan["timezone"], active=plan["active"], slug=plan["slug"])
            for plan in spec.get("schedules", [])
        ],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    check_parameters(deployment)
    return deployment


def check_parameters(deployment: RunnerDeployment) -> None:
    """InputError for parameters the flow does not take, or lacks where it runs by itself."""
    runs_by_itself = any(schedule.active for schedule in deployment.schedules or [])
    schema = form(deployment)
    if wrong := refusal(deployment.parameters, schema, complete=runs_by_itself):
        table = deployment.name.replace("-", "_")
        raise InputError(f"the profile's `{'.'.join((table, *wrong.path))}`: {wrong.sentence}")


def form(deployment: RunnerDeployment) -> dict[str, Any]:
    """The JSON schema of the flow's parameters, from which the UI draws its form."""
    flow = load_flow(str(deployment.entrypoint))
    return parameter_schema(flow).model_dump(exclude_unset=True)


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """The flow at a module path; an error in its module is raised, not passed over."""
    return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)


def deployment_wanted(wanted: RunnerDeployment) -> Object:
    """What decides a deployment."""
    options = wanted.concurrency_options
    return {
        "entrypoint": wanted.entrypoint,
        "version": wanted.version,
        "description": wanted.description,
        "tags": wanted.tags,
        "pool": wanted.work_pool_name,
        "parameters": wanted.parameters,
        "form": form(wanted),
        "enforced": wanted.enforce_parameter_schema,
        "concurrency": (wanted.concurrency_limit, options and options.collision_strategy),
        "schedules": [schedule_fields(schedule) for schedule in wanted.schedules or []],
        "job variables": wanted.job_variables,
        "pull steps": [],
    }


def deployment_there(there: DeploymentResponse) -> Object:
    """What decides a deployment, as the server has it."""
    limit, options = there.global_concurrency_limit, there.concurrency_options
    return {
        "entrypoint": there.entrypoint,
        "version": there.version,
        "description": there.description,
        "tags": there.tags,
        "pool": there.work_pool_name,
        "parameters": there.parameters,
        "form": there.parameter_openapi_schema,
        "enforced": there.enforce_parameter_schema,
        "concurrency": (limit and limit.limit, options and options.collision_strategy),
        "schedules": [schedule_fields(schedule) for schedule in there.schedules],
        "job variables": there.job_variables,
        "pull steps": there.pull_steps or [],
    }


def schedule_fields(
    schedule: DeploymentSchedule | DeploymentScheduleCreate | DeploymentScheduleUpdate,
) -> Object:
    """What decides a schedule."""
    return schedule.model_dump(mode="json", include={"slug", "active", "parameters", "schedule"})


def automation_fields(automation: AutomationCore) -> Object:
    """What decides an automation; not as JSON, in which the order of its sets is by chance."""
    return {name: getattr(automation, name) for name in ("description", "trigger", "actions")}
