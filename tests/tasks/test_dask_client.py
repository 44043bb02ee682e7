"""Work on threads, on processes and on a scheduler elsewhere: what comes back, what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import dask.config
import psutil  # type: ignore[import-untyped]  # its types are another package
import pytest
from distributed import LocalCluster

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import CorruptFileError
from tasks import dask_client as module
from tasks.dask_client import PER_THREAD, SCHEDULER, dask_client, outcomes


def work(parent: int, number: int) -> int:
    """Fails in each way that work fails; number 4 ends its process, unless that is the test's."""
    if number == 1:
        raise InputError("number 1 cannot be used")
    if number == 2:
        raise CorruptFileError("number 2 is corrupt", "typicality", "k2")
    if number == 3:
        raise ZeroDivisionError("number 3 shows a fault")
    if number == 4 and os.getpid() != parent:
        os._exit(1)
    return number * number


started: list[int] = []


def note(number: int) -> int:
    started.append(number)
    return number


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process and its children listen."""
    return {
        connection.laddr.ip
        for one in [process, *process.children(recursive=True)]
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_each_piece_of_work_comes_back_with_its_result_or_its_error(workers: int) -> None:
    ours = psutil.Process()
    before = {child.pid for child in ours.children(recursive=True)}
    with dask_client(workers) as client:
        assert listening(ours) <= {"127.0.0.1"}
        found = dict(outcomes(client, partial(work, os.getpid()), range(30)))
    assert found.keys() == set(range(30))
    assert isinstance(found[1], InputError)
    assert str(found[1]) == "number 1 cannot be used"
    assert isinstance(found[2], CorruptFileError)
    assert (str(found[2]), found[2].key) == ("number 2 is corrupt", "k2")
    assert isinstance(found[3], ZeroDivisionError)
    if workers:
        assert type(found[4]).__name__ == "KilledWorker"
    assert all(found[number] == number**2 for number in range(5, 30))
    # Python's own tracker of shared memory stays, one for all.
    left = {c for c in ours.children(recursive=True) if c.pid not in before}
    assert [c for c in left if "resource_tracker" not in " ".join(c.cmdline())] == []


def test_work_is_handed_out_as_results_are_taken() -> None:
    """Else the results of a thousand shards would wait in memory for a slow caller."""
    started.clear()
    with dask_client(0) as client:
        threads = sum(client.nthreads().values())
        for taken, _ in enumerate(outcomes(client, note, range(100)), 1):
            if taken in (1, 10):
                time.sleep(0.2)
                assert len(started) <= taken + PER_THREAD * threads
    assert sorted(started) == list(range(100))


def test_blas_leaves_the_cores_to_dask() -> None:
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # ships no types

    def blas_threads(_: int) -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with dask_client(0) as client:
        assert dict(outcomes(client, blas_threads, [0])) == {0: {1}}


def test_a_heartbeat_that_the_end_overtakes_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def gone(**_: object) -> None:
        raise OSError("the cluster has ended")

    with dask_client(0) as client:
        assert client.cluster is not None
        (worker,) = client.cluster.workers.values()
        monkeypatch.setattr(worker.scheduler, "heartbeat_worker", gone, raising=False)
        client.sync(worker.heartbeat)
    assert "heartbeat" not in caplog.text


def test_the_scheduler_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(
        n_workers=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
    ) as elsewhere:
        monkeypatch.setenv(SCHEDULER, elsewhere.scheduler_address)
        for workers in (0, 2):
            with dask_client(workers) as client:
                assert list(client.nthreads()) == [elsewhere.workers[0].address]
                found = dict(outcomes(client, partial(work, os.getpid()), range(6)))
            assert found[5] == 25
            assert isinstance(found[1], InputError)
        assert len(elsewhere.workers) == 1


def test_a_scheduler_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCHEDULER, "tcp://127.0.0.1:1")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300ms"}),
        pytest.raises(InputError, match=r"tcp://127.0.0.1:1: no Dask scheduler answers"),
        dask_client(0),
    ):
        pass
    monkeypatch.setattr(module, "SECONDS_FOR_WORKERS", 0.3)
    with LocalCluster(
        n_workers=0,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as idle:
        monkeypatch.setenv(SCHEDULER, idle.scheduler_address)
        with pytest.raises(InputError, match="no workers"), dask_client(0):
            pass


PROGRAM = """
import psutil, time
from tasks.dask_client import dask_client
if __name__ == "__main__":
    with dask_client(1):
        print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
        time.sleep(60)
"""


def test_processes_end_with_their_parent_even_if_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, file],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    timer = threading.Timer(60, program.kill)
    timer.start()
    assert program.stdout is not None
    children = [int(pid) for pid in program.stdout.readline().split()]
    assert children
    processes = [psutil.Process(pid) for pid in children]
    program.send_signal(signal.SIGKILL)
    program.wait()
    timer.cancel()
    program.stdout.close()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
