"""A Prefect server of this folder's own, and what `bootstrap` makes of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootstrapped_server import COMMAND, PASSWORD, TIME_ZONE, Bootstrap, Server
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.bootstrap import bootstrap
from deployments.profile import profile_file

START_SECONDS = 300


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, with its services: SQLite, and a password."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    with (home / "server.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                "PREFECT_HOME": str(home),
                "PREFECT_SERVER_UI_ENABLED": "false",
                "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            },
        )
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{api}/health", timeout=5):
                    break
            except OSError:
                log = (home / "server.log").read_text()
                assert process.poll() is None and time.monotonic() < end, log
                time.sleep(0.2)
        environment = {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": PASSWORD}
        yield Server(api, {**os.environ, **environment})
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def used(server: Server) -> Iterator[Server]:
    """The server, which this process talks to during the test."""
    changes = {PREFECT_API_URL: server.api, PREFECT_API_AUTH_STRING: PASSWORD}
    with temporary_settings(changes):
        yield server


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of processes, whose nights are scheduled."""
    text = profile_file("local").read_text(encoding="utf-8")
    text = text.replace('time_zone = "UTC"', f'time_zone = "{TIME_ZONE}"')
    text = re.sub(r"(\[nightly\]\nscheduled = )false", r"\1true", text)
    text = text.replace('# dataset = "/home/me/photos"', 'dataset = "/nowhere/photos"')
    text = text.replace('# root = "/home/me/mined"\n# model', 'root = "/nowhere/mined"\n# model')
    path = tmp_path_factory.mktemp("profile") / "tests.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def run_bootstrap(used: Server, profile: Path, capsys: pytest.CaptureFixture[str]) -> Bootstrap:
    """Bootstraps the server; returns what it said of each object."""

    def run(of: Path = profile, dry_run: bool = False) -> dict[str, str]:
        capsys.readouterr()
        bootstrap(str(of), dry_run)
        lines = capsys.readouterr().out.splitlines()
        return {line[:54].strip(): line[54:] for line in lines}

    return run


@pytest.fixture(scope="session")
def first_said(server: Server, profile: Path) -> str:
    """What the command said that bootstrapped the empty server; with it the server is ready."""
    ended = subprocess.run(
        [COMMAND, "bootstrap", "--profile", str(profile)],
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
