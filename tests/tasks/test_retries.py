"""What a stage's task tries again, and what it does not."""

from __future__ import annotations

import pytest
from prefect import flow

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import CorruptFileError
from tasks.units import stage_task


def tries(error: Exception, failures: int) -> int:
    """How often a task runs that raises `error` the first `failures` times."""
    count = 0

    def work() -> None:
        nonlocal count
        count += 1
        if count <= failures:
            raise error

    # Only the waiting is left out.
    quick = stage_task("work")(work).with_options(retry_delay_seconds=0, retry_jitter_factor=0)

    @flow
    def run() -> None:
        quick()

    try:
        run()
    except type(error):
        assert count < failures + 1
    return count


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("the server hung up"), 2),
        (OSError("slow down"), 2),
        (InputError("no such folder"), 1),
        (CorruptFileError("not what was written", "patches", "0f"), 1),
        (RuntimeError("CUDA out of memory"), 1),
    ],
)
def test_only_a_fault_that_may_pass_is_tried_again(error: Exception, expected: int) -> None:
    assert tries(error, failures=1) == expected


@pytest.mark.usefixtures("prefect_api")
def test_a_fault_that_stays_ends_after_three_retries() -> None:
    assert tries(OSError("still down"), failures=9) == 4
