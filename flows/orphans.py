"""A flow run that its worker or the server fails goes on, says so, and can still be cancelled.

A worker reads what its flow runs print, and ends those that a user cancels. When it dies, the next
line would end the run by a broken pipe, and nobody would end a cancelled one. Nor does a worker
that could not reach the server for half a minute: it gives up to look (Prefect 3.8.8). And a server
that was away for longer takes a run, whose heartbeats it did not hear, for dead.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.states import Cancelled, Running

LOOK_SECONDS = 10.0
"""Between two looks at the run's state."""
GRACE_SECONDS = 45.0
"""From cancelling on; for 30 of them a worker waits for the run to end by itself."""

NO_HEARTBEAT = "No heartbeat"
"""So the state's message begins of a run that is taken for dead."""
LIVES = "Its heartbeats were not heard for a while, but it lives."
ENDED = "No worker ended this run when it was cancelled, so it did itself."


def look_after(run_id: UUID) -> None:
    """Look after the flow run of this process, from a thread beside it."""
    if current_thread() is not main_thread():  # not Prefect's engine: that loads its flow in it
        return
    signal.signal(signal.SIGUSR1, _abort)
    Thread(target=_look_after, args=(run_id,), name="orphan", daemon=True).start()


def _look_after(run_id: UUID) -> None:
    worker = _process(os.getppid())
    with get_client(sync_client=True) as client:
        while True:
            if _has_ended(worker):
                _print_nowhere()
                worker = None
            with suppress(httpx.HTTPError):  # a server that is away is asked again
                state = client.read_flow_run(run_id).state
                if seems_dead(state):
                    client.set_flow_run_state(run_id, Running(message=LIVES), force=True)
                elif _is_forgotten(state):
                    _end(client, run_id)
                    return


def _process(pid: int) -> int | None:
    """A file that becomes readable when the process ends; None where the system has no such."""
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _has_ended(process: int | None) -> bool:
    """Whether the process ends within LOOK_SECONDS, which are waited for in any case but that."""
    if process is None:
        time.sleep(LOOK_SECONDS)
        return False
    return bool(select.select([process], [], [], LOOK_SECONDS)[0])


def _print_nowhere() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def seems_dead(state: State[Any] | None) -> bool:
    """Whether a run has crashed as far as one can tell who does not hear of it."""
    return state is not None and state.is_crashed() and str(state.message).startswith(NO_HEARTBEAT)


def _is_forgotten(state: State[Any] | None) -> bool:
    """Whether the run was cancelled so long ago that a worker would have ended it."""
    if state is None or not (state.is_cancelling() or state.is_cancelled()):
        return False
    return time.time() - state.timestamp.timestamp() > GRACE_SECONDS


def _end(client: SyncPrefectClient, run_id: UUID) -> None:
    client.set_flow_run_state(run_id, Cancelled(message=ENDED))
    ident = main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGUSR1)  # to it alone: it may be asleep


def _abort(signum: int, frame: FrameType | None) -> None:
    abort = Abort(ENDED)
    abort.state = Cancelled(message=ENDED)  # type: ignore[attr-defined]  # Prefect takes it from there
    raise abort
