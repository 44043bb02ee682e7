"""The runbook's way to back up and restore the database, and the image's health checks, on a real
stack of processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from infra_files import INFRA
from local_stack import Stack
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate

TEXT = (INFRA / "RUNBOOK.md").read_text()
USERS_OF_THE_DATABASE = ("worker-cpu", "worker-gpu", "services", "server")


def words_after(program: str) -> list[str]:
    """The options of a program in the runbook, without its redirection."""
    command = next(line for line in TEXT.splitlines() if f" {program} " in line and "exec" in line)
    return command.split(f" {program} ")[1].split(" > ")[0].split(" < ")[0].split()


def settings(stack: Stack) -> dict[str, str]:
    """Ports and passwords of the stack."""
    lines = (stack.folder / "settings").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def postgres(stack: Stack) -> dict[str, str]:
    """The environment in which PostgreSQL's programs find the stack's."""
    if not shutil.which("pg_dump"):
        pytest.skip("pg_dump is missing: run 'infra/local/stack install' as root")
    found = settings(stack)
    return {
        **os.environ,
        "PGHOST": "127.0.0.1",
        "PGPORT": found["POSTGRES_PORT"],
        "PGPASSWORD": found["POSTGRES_PASSWORD"],
    }


def test_a_restored_database_is_as_it_was_when_it_was_dumped(
    stack: Stack, postgres: dict[str, str], tmp_path: Path
) -> None:
    dump = tmp_path / "prefect.dump"
    with get_client(sync_client=True) as client:
        client.create_variable(VariableCreate(name="kept", value="as dumped"))
        with dump.open("wb") as file:
            command = ["pg_dump", *words_after("pg_dump")]
            subprocess.run(command, env=postgres, stdout=file, check=True)
        client.update_variable(VariableUpdate(name="kept", value="changed since"))
        client.create_variable(VariableCreate(name="made-since", value="lost"))
    try:
        stack.stop(*USERS_OF_THE_DATABASE)
        assert all(part in TEXT for part in USERS_OF_THE_DATABASE)
        with dump.open("rb") as file:
            restored = subprocess.run(
                ["pg_restore", *words_after("pg_restore")],
                env=postgres, stdin=file, capture_output=True, text=True,
            )  # fmt: skip
        assert restored.returncode == 0, restored.stderr
    finally:
        stack.start()
    with get_client(sync_client=True) as client:
        kept = client.read_variable_by_name("kept")
        assert kept is not None
        assert kept.value == "as dumped"
        assert client.read_variable_by_name("made-since") is None
        client.delete_variable_by_name("kept")


def healthy(stack: Stack, what: str) -> bool:
    """What the image's health check says."""
    found = settings(stack)
    redis = f"redis://:{found['REDIS_PASSWORD']}@127.0.0.1:{found['REDIS_PORT']}/0"
    done = subprocess.run(
        [sys.executable, INFRA / "image" / "healthy", what],
        env={**os.environ, "PREFECT_SERVER_DOCKET_URL": redis},
        capture_output=True,
    )
    return done.returncode == 0


def test_the_health_checks_tell_what_runs_and_what_does_not(stack: Stack) -> None:
    server = f"{stack.environment['PREFECT_API_URL']}/ready"
    assert healthy(stack, "services")
    assert healthy(stack, server), "it takes no password"
    stack.stop("services", "server")
    assert not healthy(stack, "services")
    assert not healthy(stack, server)
