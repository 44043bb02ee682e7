"""Runs of the command, as a user starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flows.parameters import MineParameters

REPOSITORY = Path(__file__).parents[2]


def mine_command(parameters: MineParameters) -> list[str]:
    """The command with the parameters that are set."""
    given = parameters.model_dump(exclude_unset=True)
    options = [word for name, value in given.items()
               for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    return [sys.executable, "-m", "flows", "mine", *options]


def started(parameters: MineParameters) -> subprocess.Popen[str]:
    """A run that goes on in the background."""
    return subprocess.Popen(
        mine_command(parameters),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def mined(parameters: MineParameters) -> tuple[int, str]:
    """The status and all output of a run that has ended."""
    run = started(parameters)
    output = run.communicate()[0]
    return run.returncode, output


def refused(status: int, output: str) -> str:
    """The one sentence that a run ends with which its user has to do something about."""
    assert status == 2, output
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("diffmining: ")
    return last
