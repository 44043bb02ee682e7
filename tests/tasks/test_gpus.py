from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tasks.gpus
from tasks.gpus import take_free

HOLDER = """
import sys
from pathlib import Path
from tasks.gpus import take_free
print(take_free(["first", "second"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def taken(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_processes_take_a_gpu_each_and_death_sets_it_free(tmp_path: Path) -> None:
    first = holder(tmp_path)
    assert taken(first) == "0"
    second = holder(tmp_path)
    assert taken(second) == "1"
    assert take_free(["first", "second"], tmp_path) is None
    first.kill()
    first.wait()
    try:
        assert take_free(["first", "second"], tmp_path) == 0
    finally:
        tasks.gpus._held.pop().close()
        second.communicate("")
        first.communicate()
