"""Several processes that mine one root at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import started
from stored import attempts, results

from flows.parameters import MineParameters

FirstRun = tuple[Path, dict[str, Any], int]

PROCESSES = 3


@pytest.mark.usefixtures("prefect_api")
def test_processes_that_mine_one_root_at_once_end_with_one_result_each(
    first_run: FirstRun, parameters: Callable[..., MineParameters], tmp_path: Path
) -> None:
    root = tmp_path / "shared"
    running = [started(parameters(root)) for _ in range(PROCESSES)]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
        assert "Traceback" not in output
        assert "ERROR" not in output
        assert f"Open {root}/index.html" in output
    assert results(root) == results(first_run[0])
    tries = attempts(root)
    assert tries.keys() == results(root).keys()
    summary = json.loads((root / "summary.json").read_text())
    assert (summary["images"], summary["set_aside"]) == (16, 0)
