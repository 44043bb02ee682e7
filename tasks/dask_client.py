"""Where a task's work on many shards runs: Dask, on threads, processes or a scheduler elsewhere.

`DASK_SCHEDULER_ADDRESS` names a scheduler that is running already. Its workers need this project
installed and the root within their reach, under the same address and with their own credentials.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from dask.typing import Key
from distributed import Client, Future, LocalCluster, as_completed
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.errors import InputError

# Else it tells every handler of the process, Prefect's too, of each worker that comes and goes.
logging.getLogger("distributed").setLevel(logging.WARNING)
# A heartbeat that the end of its cluster overtakes is no failure, but is told with a traceback.
logging.getLogger("distributed.worker").addFilter(
    lambda record: "scheduler during heartbeat" not in record.getMessage()
)

SCHEDULER = "DASK_SCHEDULER_ADDRESS"
SECONDS_FOR_WORKERS = 60

PER_THREAD = 2
"""Pieces of work handed out per thread, so that none waits and few results do."""

HTTP = "127.0.0.1:0"
"""Dask opens a page of figures for every scheduler and worker, by default to everyone."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def dask_client(workers: int) -> Iterator[Client]:
    """A client of the scheduler in the environment, else of a cluster that lives as long as it.

    workers: processes of that cluster; 0 for threads of this process, one per core. InputError
    where the scheduler cannot be used.
    """
    if address := os.environ.get(SCHEDULER):
        with _connected(address) as client:
            yield client
        return
    # BLAS in one thread: Dask's already fill the cores (its own processes come with that limit).
    with (
        threadpool_limits(1, user_api="blas"),
        _processes(workers) if workers else _threads() as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _processes(workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        security=True,  # by keys of this cluster only: others on this machine cannot send it work
        dashboard_address=HTTP,
        worker_dashboard_address=HTTP,
    )


def _threads() -> LocalCluster:
    with warnings.catch_warnings():
        # Without a network Dask looks in vain for this machine's address, and needs none here.
        warnings.filterwarnings("ignore", "Couldn't detect a suitable IP", RuntimeWarning)
        return LocalCluster(
            processes=False,
            memory_limit=0,  # else it would pause beside a model that fills much of the memory
            dashboard_address=HTTP,
            worker_dashboard_address=HTTP,
        )


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    """A client of a running scheduler; InputError if there is none, or it has no workers."""
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{SCHEDULER}={address}: no Dask scheduler answers there ({error}); start one, or "
            "correct or remove the variable"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=SECONDS_FOR_WORKERS)
        except TimeoutError as error:
            raise InputError(
                f"{SCHEDULER}={address}: the scheduler has had no workers for "
                f"{SECONDS_FOR_WORKERS} seconds; start some, or remove the variable"
            ) from error
        yield client


def outcomes(
    client: Client, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result | Exception]]:
    """(item, result or what was raised) for each item, as they finish.

    Only a few are handed out at a time, so that memory does not grow with the items while the
    caller takes in one result after the other.
    """
    work = partial(_tried, function)
    ahead = iter(items)
    running: dict[Key, Item] = {}
    finished = as_completed(loop=client.loop)

    def hand_out() -> None:
        threads = sum(client.nthreads().values())
        while len(running) < max(1, PER_THREAD * threads):
            try:
                item = next(ahead)
            except StopIteration:
                return
            future = client.submit(work, item, pure=False)
            running[future.key] = item
            finished.add(future)

    hand_out()
    for future in finished:
        item = running.pop(future.key)
        hand_out()
        yield item, _outcome(future)


def _tried(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    """What Dask runs: errors that say what to do come back without its traceback in the log."""
    try:
        return function(item)
    except (InputError, OSError) as error:
        return error


def _outcome(future: Future[Result | Exception]) -> Result | Exception:
    try:
        return future.result()
    except Exception as error:  # also of Dask's own: a worker that died, a scheduler that is gone
        return error
