"""A Prefect server with its services and a password, and what its tests have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

PASSWORD = "user:not-to-be-shown"
TIME_ZONE = "America/New_York"
COMMAND = str(Path(sys.executable).with_name("diffmining"))
"""As it is installed."""

Bootstrap = Callable[..., dict[str, str]]
"""Bootstraps with the tests' profile or another; returns what it said of each object."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    api: str
    environment: dict[str, str]
    """For commands that are to use it."""

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(self.api, auth_string=PASSWORD)

    def everything(self) -> dict[str, Any]:
        """All that bootstrap has to do with, as the server tells it."""
        with self.client() as client:
            found = {
                "pool": client.read_work_pools(),
                "variable": client.read_variables(),
                "deployment": client.read_deployments(),
                "automation": client.read_automations(),
            }
            return {
                f"{kind} {one.name}": one.model_dump(mode="json")
                for kind, objects in found.items()
                for one in objects  # type: ignore[attr-defined] # they have no type in common
            }
