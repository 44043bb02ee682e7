"""The local stack: who can reach it, what it keeps, and that each part comes back after a kill."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from local_stack import SCRIPT, Stack, is_running, skip_without_packages
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments import run_deployment
from prefect.events import emit_event

WAIT_SECONDS = 180
"""For a machine that does much else."""
LOOPBACK = "0100007F"
"""127.0.0.1 as the kernel writes it."""
BERLIN = ZoneInfo("Europe/Berlin")


def eventually(seen: Callable[[], Any], what: str) -> Any:
    """What is seen once that is something."""
    end = time.monotonic() + WAIT_SECONDS
    while not (result := seen()):
        assert time.monotonic() < end, f"{what}: not within {WAIT_SECONDS} s"
        time.sleep(0.3)
    return result


@pytest.fixture
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def deploy(client: SyncPrefectClient, flow: str, **options: Any) -> str:
    """A deployment of one of the small flows, which the cpu worker imports."""
    name = f"{flow}-{time.monotonic_ns()}"
    client.create_deployment(
        client.create_flow_from_name(flow),
        name,
        entrypoint=f"stack_flows.{flow}",
        work_pool_name="cpu",
        job_variables={"env": {"PYTHONPATH": str(Path(__file__).parent)}},
        **options,
    )
    return f"{flow}/{name}"


def settings(stack: Stack) -> dict[str, str]:
    lines = (stack.folder / "settings").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def secrets(stack: Stack) -> list[str]:
    kept = settings(stack)
    return [kept["POSTGRES_PASSWORD"], kept["REDIS_PASSWORD"], kept["API_AUTH"].split(":")[1]]


def asked(stack: Stack, path: str, password: str | None = None, user: str = "diffmining") -> int:
    """The status of the API's answer."""
    request = urllib.request.Request(f"{stack.environment['PREFECT_API_URL']}/{path}")
    if password is not None:
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def redis(stack: Stack, *words: str, password: str | None = None) -> str:
    kept = settings(stack)
    return subprocess.run(
        ["redis-cli", "-h", "127.0.0.1", "-p", kept["REDIS_PORT"], *words],
        env={**os.environ, "REDISCLI_AUTH": password or kept["REDIS_PASSWORD"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def keys(stack: Stack, pattern: str) -> list[str]:
    return redis(stack, "--scan", "--pattern", pattern).split()


def status(stack: Stack) -> str:
    return subprocess.run([SCRIPT, "status", stack.folder], capture_output=True, text=True).stdout


def sql(stack: Stack, query: str, password: str | None = None) -> str:
    kept = settings(stack)
    address = ["-h", "127.0.0.1", "-p", kept["POSTGRES_PORT"], "-U", "prefect"]
    done = subprocess.run(
        ["psql", *address, "-tAc", query],
        env={**os.environ, "PGPASSWORD": password or kept["POSTGRES_PASSWORD"]},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or done.stderr


def processes(stack: Stack) -> dict[str, list[int]]:
    """The processes of each part, by what they say of themselves."""
    found: dict[str, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if match := re.search(rf"{stack.folder}/(?:run/)?([a-z0-9-]+)".encode(), words):
            found.setdefault(match[1].decode(), []).append(int(folder.name))
    return found


def listening(pid: int) -> list[str]:
    """The addresses at which a process listens."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    sockets = {str(file.readlink()) for file in files if file.is_symlink()}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [line[1].split(":")[0] for line in lines
            if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]  # fmt: skip


def test_listens_on_loopback_only(stack: Stack) -> None:
    found = processes(stack)
    assert {"postgres", "redis", "server", "services", "worker-cpu", "worker-gpu"} <= set(found)
    addresses = {
        part: [at for pid in pids for at in listening(pid)] for part, pids in found.items()
    }
    assert {at for each in addresses.values() for at in each} == {"0100007F"}
    assert all(addresses[part] for part in ("postgres", "redis", "server"))


def test_asks_for_passwords(stack: Stack) -> None:
    password = secrets(stack)[2]
    assert asked(stack, "health") == 200
    assert asked(stack, "admin/version") == 401
    assert asked(stack, "admin/version", "wrong") == 401
    assert asked(stack, "admin/version", password, user="someone") == 401
    assert asked(stack, "admin/version", password) == 200
    assert "NOAUTH" in redis(stack, "ping", password="wrong")
    assert "password authentication failed" in sql(stack, "select 1", password="wrong")


def test_browser_is_sent_to_the_right_server(stack: Stack) -> None:
    address = stack.environment["PREFECT_API_URL"]
    with urllib.request.urlopen(address.removesuffix("/api") + "/ui-settings") as answer:
        seen = json.load(answer)
    assert (seen["api_url"], seen["auth"]) == (address, "BASIC")


def test_runs_flows_and_records_their_tasks(
    stack: Stack, client: SyncPrefectClient, tmp_path: Path
) -> None:
    file = tmp_path / "seen"
    parameters = {"numbers": [1, 2, 3], "file": str(file)}
    done = run_deployment(deploy(client, "doubled"), parameters=parameters, timeout=WAIT_SECONDS)
    assert isinstance(done, FlowRun) and done.state_name == "Completed"
    folder, heartbeat = file.read_text().splitlines()
    assert Path(folder).is_relative_to(stack.folder / "work" / "worker-cpu")
    assert heartbeat == "30"
    assert sql(stack, f"select state_name from flow_run where id = '{done.id}'") == "Completed"
    query = f"select state_name from task_run where flow_run_id = '{done.id}'"
    eventually(lambda: sql(stack, query).split() == ["Completed"] * 3, "task runs recorded")


def test_messages_order_leases_and_turns_are_in_redis(
    stack: Stack, client: SyncPrefectClient
) -> None:
    emit_event("diffmining.test", {"prefect.resource.id": "somewhere"})
    eventually(lambda: keys(stack, "triggers:seen:*"), "order of events in Redis")
    assert keys(stack, "message:messaging-cache:*")
    assert keys(stack, "prefect:worker-cleanup:*")
    assert set(keys(stack, "prefect*:workers")) == {"prefect:workers", "prefect-server:workers"}
    groups = redis(stack, "xinfo", "groups", "events").split()
    assert {"event-persister", "reactive-triggers", "task-run-recorder"} <= set(groups)


def test_cron_schedules_runs(stack: Stack, client: SyncPrefectClient) -> None:
    assert {time.astimezone(BERLIN).hour for time in scheduled(client, hour=3)} == {3}


def scheduled(client: SyncPrefectClient, hour: int) -> list[datetime]:
    """When a new deployment's first runs are, each day at an hour in Berlin."""
    schedule = CronSchedule(cron=f"0 {hour} * * *", timezone=str(BERLIN))
    name = deploy(client, "doubled", schedules=[DeploymentScheduleCreate(schedule=schedule)])
    deployment = DeploymentFilter(
        id=DeploymentFilterId(any_=[client.read_deployment_by_name(name).id])
    )
    runs = eventually(lambda: client.read_flow_runs(deployment_filter=deployment), "runs scheduled")
    return [run.expected_start_time for run in runs]


# PostgreSQL and the server are killed in test_reruns, in the middle of runs.
@pytest.mark.parametrize("part", ["redis", "services"])
def test_comes_back_after_a_kill(stack: Stack, client: SyncPrefectClient, part: str) -> None:
    flows = sql(stack, "select id from flow order by id")
    stack.kill(part)
    assert re.findall(r"^(.+?) +dead", status(stack), re.MULTILINE) == [part]
    stack.start(part)
    assert "dead" not in status(stack)
    assert sql(stack, "select id from flow order by id") == flows
    name = f"diffmining.after-{part}-{time.monotonic_ns()}"
    emit_event(name, {"prefect.resource.id": "somewhere"})
    query = f"select count(*) from events where event = '{name}'"
    eventually(lambda: sql(stack, query) == "1", "event kept")
    assert scheduled(client, hour=4)


def test_a_part_that_ends_at_its_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    skip_without_packages()
    broken = tmp_path / "bin" / "redis-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such option\nexit 3\n")
    broken.chmod(0o755)
    path = f"{broken.parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        [SCRIPT, "start", tmp_path / "stack", "redis"],
        env={**os.environ, "PATH": path, "STACK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "no such option\nstack: redis has ended; the last lines of" in ended.stderr


def test_another_worker(stack: Stack, client: SyncPrefectClient) -> None:
    stack.start("worker-gpu-2")
    names = [worker.name for worker in client.read_workers_for_work_pool("gpu")]
    assert {"worker-gpu", "worker-gpu-2"} <= set(names)
    assert re.search(r"^worker-gpu-2 +running", status(stack), re.MULTILINE)
    stack.stop("worker-gpu-2")
    assert "worker-gpu-2" not in status(stack)


def test_stop_ends_what_a_killed_worker_left_and_start_goes_on(
    stack: Stack, client: SyncPrefectClient, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    name = deploy(client, "lasting", concurrency_limit=1)
    run_deployment(name, parameters={"file": str(file)}, timeout=0)
    eventually(lambda: file.exists() and file.read_text(), "the flow's process")
    process = int(file.read_text())
    assert keys(stack, "prefect:concurrency:lease:*")
    stack.kill("worker-cpu")
    killed = stack.pid("worker-cpu")
    stack.start("worker-cpu")
    assert is_running(stack.pid("worker-cpu")) and stack.pid("worker-cpu") != killed
    assert is_running(process)

    runs = sql(stack, "select id from flow_run order by id")
    environment = stack.environment
    stack.stop()
    assert processes(stack) == {}
    assert not is_running(process)
    assert re.findall("running|dead", status(stack)) == []
    stack.start()
    assert stack.environment == environment
    assert sql(stack, "select id from flow_run order by id") == runs


def test_secrets_are_in_private_files_only(stack: Stack) -> None:
    commands = b"".join(file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline"))
    files = [file for file in stack.folder.rglob("*") if file.is_file()]
    for secret in map(str.encode, secrets(stack)):
        assert secret not in commands
        holding = [file for file in files if secret in file.read_bytes()]
        assert {file.name for file in holding} & {"settings", "environment"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in holding} == {0o600}
        assert "log" not in {file.relative_to(stack.folder).parts[0] for file in holding}


@pytest.mark.parametrize("part", ["postgres", "redis"])
def test_refuses_a_port_that_is_taken(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_packages()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv(f"{part.upper()}_PORT", port)
        with pytest.raises(RuntimeError, match=f"port {port} is in use .* as {part.upper()}_PORT"):
            Stack(tmp_path / "stack").start(part)


def test_refuses_what_is_no_stack(tmp_path: Path) -> None:
    skip_without_packages()
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RuntimeError, match="holds other things; give a new or an empty folder"):
        Stack(tmp_path).start("redis")
    with pytest.raises(RuntimeError, match="holds no stack"):
        Stack(tmp_path).remove()
    assert (tmp_path / "photo.jpg").exists()
    with pytest.raises(RuntimeError, match="no part is called web; expected one of postgres"):
        Stack(tmp_path / "new").start("web")


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs PostgreSQL as another user")
def test_refuses_a_folder_that_postgres_cannot_enter(tmp_path: Path) -> None:
    skip_without_packages()
    tmp_path.chmod(0o700)
    with pytest.raises(RuntimeError, match="the user postgres cannot enter"):
        Stack(tmp_path / "stack").start("postgres")
