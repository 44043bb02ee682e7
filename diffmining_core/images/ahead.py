"""Images are read ahead on a few threads, in order and never many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 4
AHEAD = 8
"""Images decoded before they are asked for."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    read: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with its result, in order, read ahead on threads but only a few at a time."""
    pending: deque[tuple[_Item, Future[_Result]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            pending.append((item, pool.submit(read, item)))
            if len(pending) > AHEAD:
                done, result = pending.popleft()
                yield done, result.result()
        while pending:
            done, result = pending.popleft()
            yield done, result.result()
