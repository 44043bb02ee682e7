"""What differs between the places where the flows run, read from a TOML file; no secrets."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from diffmining_core.errors import InputError

HERE = Path(__file__).parent
VARIABLE = "diffmining_profile"
"""The Prefect variable in which a server keeps the profile it was bootstrapped with."""


class _Table(BaseModel):
    """A table of the file; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pools(_Table):
    """Where runs happen, and how many at once."""

    infrastructure: Literal["process", "docker", "kubernetes"]
    templates: str = ""
    gpus: int = Field(ge=1)
    cpu_runs: int = Field(ge=1)
    heartbeat_seconds: int = Field(ge=30)  # Prefect sends them no faster
    job_variables: dict[str, Any] = {}
    allow: list[str] = []


class Scheduled(_Table):
    """When a flow runs by itself, and with which parameters."""

    scheduled: bool
    cron: str
    parameters: dict[str, Any] = {}

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, cron: str) -> str:
        try:
            CronSchedule(cron=cron)
        except ValidationError as error:
            raise ValueError("should be a cron line such as 0 2 * * *") from error
        return cron


class Profile(_Table):
    """One place. The folder of templates is absolute, whatever the file says."""

    time_zone: str
    pools: Pools
    nightly: Scheduled
    watch_shards: Scheduled
    gc: Scheduled

    @field_validator("time_zone")
    @classmethod
    def _is_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError) as error:  # by what is wrong with the name
            raise ValueError("should be a time zone such as Europe/Paris") from error
        return name


def load_profile(name_or_path: str) -> Profile:
    """The profile of this name, or in this file; InputError for what is wrong with it."""
    path = profile_file(name_or_path)
    try:
        profile = Profile(**tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = "; ".join(
            f"`{'.'.join(map(str, wrong['loc']))}`: {wrong['msg'].lower()}, but is "
            f"{wrong['input']!r:.60}"
            for wrong in error.errors()
        )
        raise InputError(f"profile {path}: {wrong}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"profile {path} is no TOML file: {error}") from error
    folder = path.parent / profile.pools.templates if profile.pools.templates else HERE / "pools"
    pools = profile.pools.model_copy(update={"templates": str(folder.resolve())})
    return profile.model_copy(update={"pools": pools})


def profile_file(name_or_path: str) -> Path:
    """The file of a profile; InputError if there is none."""
    there = {path.stem: path for path in sorted((HERE / "profiles").glob("*.toml"))}
    path = there.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise InputError(
            f"there is no profile {name_or_path!r}: give {', '.join(there)} or a TOML file"
        )
    return path


def of_server() -> dict[str, Any]:
    """The profile that the server was bootstrapped with, or else the one for a laptop.

    A build step of `prefect.yaml`, so that `prefect deploy` and `diffmining bootstrap` agree.
    """
    with get_client(sync_client=True) as client:
        kept = client.read_variable_by_name(VARIABLE)
    profile = Profile.model_validate(kept.value) if kept else load_profile("local")
    return profile.model_dump(mode="json")
