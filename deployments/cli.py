"""The command `diffmining`: that of the flows, and `bootstrap`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from flows.answers import Answer, command
from flows.cli import app, main

__all__ = ["app", "main"]


@command(
    app,
    "diffmining bootstrap --profile local",
    "diffmining bootstrap --profile production.toml --dry-run",
)
def bootstrap(
    *, profile: str = "local", dry_run: Annotated[bool, Parameter(negative="")] = False
) -> Answer:
    """Give the Prefect server at PREFECT_API_URL its pools, deployments and automations.

    Run it again after an upgrade or a change of the profile: it changes only what differs, and
    removes nothing.

    Parameters
    ----------
    profile
        What differs between places: local, staging, production, or a TOML file of your own.
    dry_run
        Only say what it would do.
    """
    from deployments.bootstrap import bootstrap as run

    return Answer([asdict(one) for one in run(profile, dry_run)])
