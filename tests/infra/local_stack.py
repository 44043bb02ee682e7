"""A stack of the tests' own from infra/local/stack: databases, Prefect's server, workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from s3_servers import S3Server

SCRIPT = Path(__file__).parents[2] / "infra" / "local" / "stack"
GATE = str(Path(__file__).parent / "gate")
"""Holds what keeps the stack's processes at a closed gate."""

MISSING = "PostgreSQL and Redis are missing: run 'infra/local/stack install' as root"


@dataclass
class Stack:
    """A stack in a folder, and the variables by which clients reach it (once it was started)."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    s3: S3Server | None = None

    def start(self, *parts: str) -> None:
        """Starts what does not run, all or those named; raises with the script's words."""
        lines = self._script("start", *parts).splitlines()
        self.environment = dict(line.split("=", 1) for line in lines)
        aws = {name: value for name, value in self.environment.items() if name.startswith("AWS_")}
        if aws and self.s3 is None:
            self.s3 = S3Server(aws, folder=self.folder / "s3")

    def stop(self, *parts: str) -> None:
        """Ends all or those named."""
        self._script("stop", *parts)

    def remove(self) -> None:
        """Ends all and deletes the folder."""
        self._script("remove")

    def pid(self, part: str) -> int:
        """The process that the part was last started as."""
        return int((self.folder / "run" / f"{part}.pid").read_text())

    def log(self, part: str) -> str:
        """What the part has said since the folder was made."""
        return (self.folder / "log" / f"{part}.log").read_text()

    def kill(self, part: str, signal: int = signal.SIGKILL) -> None:
        """Sends a signal to the part's process alone, and waits until that has ended."""
        pid = self.pid(part)
        os.kill(pid, signal)
        while is_running(pid):
            time.sleep(0.05)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, Prefect and s3:// mean this stack, here and for commands started here."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in self.environment.items():
                patch.setenv(name, value)
            if self.s3 is not None:
                stack.enter_context(self.s3.used())
            _hand_over()
            settings = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
            stack.enter_context(
                temporary_settings({each: self.environment[each.name] for each in settings})
            )
            yield
            _hand_over()

    def _script(self, command: str, *parts: str) -> str:
        done = subprocess.run(
            [SCRIPT, command, self.folder, *parts],
            capture_output=True,
            text=True,
            # Workers look for work every 2 s instead of 10: the tests wait for that.
            env={
                **os.environ,
                "STACK_PYTHON": sys.executable,
                "PREFECT_WORKER_QUERY_SECONDS": "2",
                "PYTHONPATH": os.pathsep.join(
                    [GATE, *filter(None, [os.environ.get("PYTHONPATH")])]
                ),
            },
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout


def is_running(pid: int) -> bool:
    """Whether the process runs; one that has ended and is only still listed does not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "\nState:\tZ" not in status


def _hand_over() -> None:
    """Sends the last log lines and events to the server they were made for."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all()  # the next event finds a client of the server in use then


def skip_without_packages() -> None:
    """Skips the test by name where Debian's packages are missing."""
    postgres = shutil.which("postgres") or any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not (postgres and shutil.which("redis-server")):
        pytest.skip(MISSING)


@contextmanager
def local_stack(*parts: str) -> Iterator[Stack]:
    """A running stack of all parts or those named, deleted in the end.

    The test is skipped where Debian's packages are missing.
    """
    skip_without_packages()
    # Not pytest's folder: PostgreSQL's user has to pass through, and nobody may pass through that.
    stack = Stack(Path(tempfile.mkdtemp(prefix="diffmining-stack-")))
    try:
        stack.start(*parts)
        yield stack
    finally:
        stack.remove()
