"""Runs of the command, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.parameters import MineParameters

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from deployments.cli import main; main()"]
"""What `diffmining` starts."""


def options(given: Mapping[str, object]) -> list[str]:
    """Parameters as a user would write them."""
    return [word for name, value in given.items()
            for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip


def mine_words(parameters: MineParameters) -> list[str]:
    """The command with the parameters that are set."""
    return ["mine", *options(parameters.model_dump(exclude_unset=True))]


def diffmining(
    *words: str, program: Sequence[str] = COMMAND, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command, ended, with the environment changed."""
    return subprocess.run(
        [*program, *words],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def started(parameters: MineParameters) -> subprocess.Popen[str]:
    """A run that goes on in the background."""
    return subprocess.Popen(
        [*COMMAND, *mine_words(parameters)],
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
