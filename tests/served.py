"""All that a server which has served other tests too has of something, page after page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

Found = TypeVar("Found")

PAGE = 200
"""The most that a Prefect server gives at once."""


def paged(read: Callable[..., list[Found]]) -> Iterator[Found]:
    """What a client's method reads; it takes a limit and an offset."""
    offset = 0
    while page := read(limit=PAGE, offset=offset):
        yield from page
        offset += len(page)
