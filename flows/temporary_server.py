"""Prefect's temporary server, which runs for the length of a command if no server is configured.

If it exits while starting, Prefect 3.8.8 silently starts it again, forever. Here it is started
before the flow, and its failure is one sentence.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from subprocess import Popen
from threading import Lock, Thread
from typing import IO, TYPE_CHECKING, Any, TypeVar

from diffmining_core.errors import InputError

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

Parameters = TypeVar("Parameters")

PORTS_TRIED = 3
"""A port that is free may be taken before the server listens there."""
LOOK_SECONDS = 0.1
LINES_KEPT = 1000


def run(flow: Callable[[Parameters], dict[str, Any]], parameters: Parameters) -> dict[str, Any]:
    """Run the flow, with a temporary server if PREFECT_API_URL names none.

    InputError with the reason if that server ends at its start.
    """
    start()
    return flow(parameters)


def start() -> None:
    """Start the temporary server that Prefect would start, unless it runs or a server is given."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if server.running:
        return
    atexit.register(server.stop)
    for _ in range(PORTS_TRIED):
        said = _started(server)
        if _answers(server, settings.server.ephemeral.startup_timeout_seconds):
            server.running = True
            said.forward()
            return
        server.server_process = None  # nothing is left to stop
        reason = said.reason()
        if "address already in use" not in reason:
            break
    raise InputError(
        f"Prefect's temporary server ended at its start ({reason}); if a newer Prefect has used "
        f"{settings.home}, set PREFECT_HOME to another folder, or PREFECT_API_URL to a running "
        "server"
    )


class _ErrorOutput(Thread):
    """The server's error output: kept while it starts, forwarded to ours afterwards."""

    def __init__(self, pipe: IO[str]) -> None:
        super().__init__(name="temporary server", daemon=True)
        self._pipe = pipe
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._forwards = False
        self._lock = Lock()
        self.start()

    def run(self) -> None:
        """Read until the server has ended."""
        with self._pipe:
            for line in self._pipe:
                with self._lock:
                    if self._forwards:
                        sys.stderr.write(line)
                    else:
                        self._lines.append(line)

    def forward(self) -> None:
        """Forward the lines kept so far, and all later ones."""
        with self._lock:
            sys.stderr.writelines(self._lines)
            self._lines.clear()
            self._forwards = True

    def reason(self) -> str:
        """Why the server has ended: its last error, or else its last line."""
        self.join(timeout=5)
        lines = [line.strip() for line in self._lines if line.strip()]
        errors = [found[1] for line in lines if (found := re.match(r"[A-Za-z_][\w.]*: (.+)", line))]
        return (errors or lines or ["it does not say why"])[-1]


def _started(server: SubprocessASGIServer) -> _ErrorOutput:
    """Start the server's process at a free port, with its error output in our hands."""
    from prefect.server.api.server import subprocess_server_logger

    server.port = server.find_available_port()
    subprocess_server_logger.info("Starting temporary server on %s", server.address)
    reading, writing = os.pipe()
    ours = os.dup(2)
    try:
        os.dup2(writing, 2)  # Prefect lets it inherit ours
        server.server_process = server._run_uvicorn_command()
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(writing)
    return _ErrorOutput(os.fdopen(reading, encoding="utf-8", errors="replace"))


def _answers(server: SubprocessASGIServer, seconds: float) -> bool:
    """Wait until the server answers; False if it has ended. TimeoutError if it does neither."""
    import httpx

    process: Popen[Any] | None = server.server_process
    end = time.monotonic() + seconds
    with httpx.Client(trust_env=False) as client:
        while process is not None and process.poll() is None:
            try:
                if client.get(f"{server.api_url}/health").is_success:
                    return True
            except httpx.HTTPError:
                pass  # it does not listen yet
            if time.monotonic() > end:
                raise TimeoutError(f"Prefect's temporary server did not answer in {seconds:.0f} s")
            time.sleep(LOOK_SECONDS)
    return False
