"""Small flows that a worker of the local stack imports."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow, task
from prefect.settings import get_current_settings


@task
def double(number: int) -> int:
    return 2 * number


@flow
def doubled(numbers: list[int], file: Path) -> None:
    """Doubles numbers; writes where it runs and how often it says that it is alive."""
    for number in numbers:
        double(number)
    file.write_text(f"{Path.cwd()}\n{get_current_settings().flows.heartbeat_frequency}")


@flow
def lasting(file: Path) -> None:
    """Writes its process's number, and goes on for longer than any test."""
    file.write_text(str(os.getpid()))
    time.sleep(600)
