"""Progress tells people how far the work is, and never stops it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from relay import relayed
from served import paged

from tasks import progress
from tasks.progress import Progress

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(autouse=True)
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", -1.0)


def told() -> list[tuple[Any, str]]:
    with get_client(sync_client=True) as client:
        kept = list(paged(client.read_artifacts))
    return [(one.data, str(one.description)) for one in kept if one.type == "progress"]


def test_it_is_told_in_the_ui() -> None:
    @task
    def work() -> None:
        with Progress("measuring here", 4, "maps") as progress:
            progress.advance(3, "loss 0.5")

    @flow
    def run() -> None:
        work()

    run()
    (seen,) = [one for one in told() if one[1].startswith("measuring here")]
    assert seen[0] == 75
    assert "3 of 4 maps" in seen[1] and seen[1].endswith("left, loss 0.5")


def test_a_server_that_goes_away_neither_stops_nor_delays_the_work(prefect_api: str) -> None:
    seconds: list[float] = []

    @task
    def work() -> int:
        with Progress("measuring there", 4, "maps") as progress:
            progress.advance(2)
            relay.cut()
            started = time.monotonic()
            progress.advance(1)
            seconds.append(time.monotonic() - started)
            relay.mend()
            progress.advance(1)
        return int(progress.bar.n)

    @flow
    def run() -> int:
        return work()

    with relayed(prefect_api) as relay:
        assert run() == 4
    assert seconds[0] < 5
    (seen,) = [one for one in told() if one[1].startswith("measuring there")]
    assert seen[0] == 100


def test_one_that_begins_while_the_server_is_away_counts_on(prefect_api: str) -> None:
    @task
    def work() -> int:
        relay.cut()
        with Progress("measuring nowhere", 2, "maps") as progress:
            progress.advance(2)
        relay.mend()
        return int(progress.bar.n)

    @flow
    def run() -> int:
        return work()

    with relayed(prefect_api) as relay:
        assert run() == 2
    assert not [one for one in told() if one[1].startswith("measuring nowhere")]
