"""A disk that fills up in the middle of a run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import mined, refused
from stored import results

from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from flows.mine import mine
from flows.parameters import MineParameters


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which the finetuned model does not fit."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no disks, also for root")
    yield disk
    # Lazy: the model that was mined with stays open here.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.usefixtures("prefect_api")
def test_a_full_disk_ends_the_run_in_a_sentence_and_the_next_goes_on(
    small_disk: Path,
    first_run: tuple[Path, dict[str, Any], int],
    parameters: Callable[..., MineParameters],
) -> None:
    small = parameters(small_disk / "root")
    sentence = refused(*mined(small))
    assert "no space is left" in sentence
    opened = open_root(small.root)
    assert len(published(opened, "index")) == 3
    assert not published(opened, "finetune")
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    mine(small)
    assert results(small.root) == results(first_run[0])
