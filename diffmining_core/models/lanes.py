"""Work on one item after the other, the device never waiting for the next.

On the CPU several items are worked on at once, each by one thread: a UNet of few channels spends
much of its time waiting for the threads that share one forward. On a GPU a second thread gets
the next item ready, and what an item gives is fetched while the next one runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


def in_lanes(
    device: torch.device,
    items: Iterable[Item],
    prepare: Callable[[Item], Ready],
    work: Callable[[Ready], Callable[[], Result]],
) -> Iterator[Result]:
    """What `work(prepare(item))()` gives for each item, in their order.

    prepare: reads the item and brings it to the device. work: starts what is to be done, and
    returns what waits for it. An exception of any of them is raised by the time its item's turn
    comes, and no further item is begun.
    """
    if device.type == "cpu":
        yield from _side_by_side(items, lambda item: work(prepare(item))())
    else:
        yield from _ahead(device, items, prepare, work)


def _side_by_side(items: Iterable[Item], whole: Callable[[Item], Result]) -> Iterator[Result]:
    count = cores()
    with _lanes(count) as pool:
        yield from _in_order(pool, items, whole, begun=2 * count)


@contextmanager
def _lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each do the whole of an operation of torch themselves."""
    others = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # else the first operation would look up the number once more
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(count, initializer=start) as pool:
        try:
            for _ in range(count):
                pool.submit(int)
            started.wait()
        except BaseException:
            started.abort()
            raise
        torch.set_num_threads(others)  # what a thread sets holds for all that begin after it
        yield pool


def _ahead(
    device: torch.device,
    items: Iterable[Item],
    prepare: Callable[[Item], Ready],
    work: Callable[[Ready], Callable[[], Result]],
) -> Iterator[Result]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it

    def prepared(item: Item) -> Ready:
        with torch.cuda.stream(stream):
            ready = prepare(item)
        stream.synchronize()
        return ready

    # What is ready is held until its result is there: memory of the other stream, once let go, is
    # written again without a look at what this one still reads.
    started: tuple[Callable[[], Result], Ready] | None = None
    with ThreadPoolExecutor(1) as pool:
        for ready in _in_order(pool, items, prepared, begun=1):
            previous, started = started, (work(ready), ready)
            if previous is not None:
                yield previous[0]()
    if started is not None:
        yield started[0]()


def _in_order(
    pool: ThreadPoolExecutor,
    items: Iterable[Item],
    call: Callable[[Item], Result],
    begun: int,
) -> Iterator[Result]:
    """The results in order; so many items are begun before the first of them is handed out."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            # Settings and the like that hold here hold there too.
            waiting.append(pool.submit(copy_context().run, call, item))
            if len(waiting) > begun:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def cores() -> int:
    """Threads that this process may well use: as many as torch would, within its allowance.

    OMP_NUM_THREADS and torch.set_num_threads say how many; a container's share of the machine's
    processor time, which torch does not see, is never exceeded.
    """
    wanted, allowed = torch.get_num_threads(), cpu_allowance()
    return wanted if allowed is None else max(1, min(wanted, int(allowed)))


def cpu_allowance(control_group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processors' worth of time that this control group may use (Linux); None for no limit."""
    try:
        quota, period = (control_group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
