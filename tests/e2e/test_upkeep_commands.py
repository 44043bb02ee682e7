"""The commands that look after a root, as a user runs them."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from commands import diffmining

from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import open_run
from diffmining_core.store.units import Unit


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A run's root with one unit."""
    root = open_root(str(tmp_path / "root"))
    open_run(root, {"dataset": "/data/streets", "model": "tiny"})
    complete(root, Unit("index", "1", (), {}), produce)
    return tmp_path / "root"


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("shard", bytes(1000))


def cpu_seconds_of_commands() -> float:
    """Of all that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_status_answers_at_once(small_root: Path) -> None:
    before = cpu_seconds_of_commands()
    ended = diffmining("status", str(small_root))
    assert ended.returncode == 0, ended.stderr
    assert "index" in ended.stdout
    assert cpu_seconds_of_commands() - before < 2  # measured: 0.8, whoever else uses the cores
    assert diffmining("status", str(small_root), "--json").stdout.startswith('{"root"')


def test_verify_ends_with_1_where_something_is_damaged(small_root: Path) -> None:
    assert diffmining("verify", str(small_root)).returncode == 0
    (shard,) = small_root.glob("index/*/attempt-*/shard")
    shard.write_bytes(bytes(999))
    ended = diffmining("verify", str(small_root))
    assert ended.returncode == 1
    assert "got 999 bytes" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_gc_and_check_take_their_options(small_root: Path) -> None:
    ended = diffmining("gc", str(small_root), "--older-than", "1h", "--delete")
    assert ended.returncode == 0, ended.stderr
    assert "0 leftovers older than 1h" in ended.stdout
    assert diffmining("storage", "check", str(small_root)).returncode == 0


@pytest.mark.parametrize("command", ["status", "verify", "gc"])
def test_what_is_no_root_is_refused_in_one_sentence(tmp_path: Path, command: str) -> None:
    ended = diffmining(command, str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"diffmining: {tmp_path} holds no run's results")
    assert ended.stderr.count("\n") == 1
