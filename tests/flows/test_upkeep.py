from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from diffmining_core.errors import InputError
from diffmining_core.store import roots
from diffmining_core.store.ledger import Attempt, complete, published, retract
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import RUN_FORMAT, Failure, note_failure, open_run, plan_stage
from diffmining_core.store.status import run_status
from diffmining_core.store.units import Unit
from flows import upkeep

Output = pytest.CaptureFixture[str]

UNITS = [Unit("typicality", "1", (f"images {number}",), {}) for number in range(8)]


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("maps/values", bytes(range(256)))
    attempt.counts["set_aside"] = 1


@pytest.fixture
def opened(tmp_path: Path) -> Root:
    """A run's root: of 8 units planned 2 are done and 4 failed."""
    root = open_root(str(tmp_path / "root"))
    open_run(root, {"dataset": "/data/streets", "model": "tiny"})
    plan_stage(root, "typicality", [unit.key for unit in UNITS])
    for unit in UNITS[:2]:
        complete(root, unit, produce)
    for unit in UNITS[2:6]:
        note_failure(root, "typicality", unit.key, Failure("out of memory"))
    return root


def test_status_is_a_table_that_fits_the_terminal(opened: Root, capsys: Output) -> None:
    upkeep.status(opened.url)
    said = capsys.readouterr().out
    head, row = (line for line in said.splitlines() if line.startswith(("stage ", "typicality ")))
    assert " ".join(head.split()) == "stage planned done missing failed set aside rate time left"
    assert re.fullmatch(r"typicality +8 +2 +2 +4 +2 +[\d.]+/min +\d\d:\d\d", row)
    assert max(len(head), len(row)) < 80
    assert f"root: {opened.url}\ndataset: /data/streets\nmodel: tiny\n" in said
    assert said.count("failed: out of memory") == upkeep.REASONS_SHOWN
    assert "1 more failed" in said


def test_status_says_what_does_not_go_on(opened: Root, capsys: Output) -> None:
    upkeep.print_status(run_status(opened, now := 4e9), now)
    said = capsys.readouterr().out
    assert re.search(r"typicality: not running since 20\d\d-.* days ago; run the same", said)
    plan_stage(opened, "finetune", ["0" * 32])
    upkeep.status(opened.url)
    assert "finetune: no result yet since it was planned (20" in capsys.readouterr().out


def test_status_as_json_says_the_same(opened: Root, capsys: Output) -> None:
    upkeep.status(opened.url, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["root"], said["dataset"], said["model"]) == (opened.url, "/data/streets", "tiny")
    (stage,) = said["stages"]
    assert (stage["planned"], stage["done"], stage["missing"]) == (8, 2, 2)
    assert set(stage["failed"].values()) == {"out of memory"}
    assert stage["pace"]["state"] == "running"


def test_verify_counts_what_it_reread(opened: Root, capsys: Output) -> None:
    upkeep.verify(opened.url)
    assert "2 units, 2 files, 512B reread; 0 damaged." in capsys.readouterr().out


def test_verify_names_the_damage_and_what_to_do(opened: Root, capsys: Output) -> None:
    (damaged,) = Path(opened.url).glob(f"typicality/{UNITS[0].key}/attempt-*/maps/values")
    damaged.write_bytes(b"x")
    with pytest.raises(SystemExit) as ended:
        upkeep.verify(opened.url)
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert f"damaged typicality/{UNITS[0].key}: {damaged}: expected 256 bytes" in said
    assert "1 damaged.\nRun the same `diffmining mine` again" in said
    assert published(opened, "typicality") == {unit.key for unit in UNITS[:2]}  # it only looks


def test_gc_lists_first_and_removes_when_told(opened: Root, capsys: Output) -> None:
    retract(opened, "typicality", UNITS[0].key)
    before = sorted(Path(opened.url).rglob("*"))
    upkeep.gc(opened.url)
    assert capsys.readouterr().out == "0 leftovers older than 7d in 0 files, 0.00B.\n"
    upkeep.gc(opened.url, older_than="0s")
    said = capsys.readouterr().out
    assert re.search(rf"can go typicality/{UNITS[0].key}/attempt-\w+: attempt, 1 files, 256B", said)
    assert said.endswith("1 leftovers older than 0s in 1 files, 256B; --delete removes them.\n")
    assert sorted(Path(opened.url).rglob("*")) == before

    upkeep.gc(opened.url, older_than="0s", delete=True)
    said = capsys.readouterr().out
    assert said.endswith("1 leftovers older than 0s in 1 files, 256B removed.\n")
    assert not Path(opened.url, "typicality", UNITS[0].key).exists()
    assert Path(opened.url, "typicality", UNITS[1].key).exists()


@pytest.mark.parametrize(
    ("age", "seconds"), [("0s", 0), ("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600)]
)
def test_ages(age: str, seconds: float) -> None:
    assert upkeep.seconds_of(age) == seconds


@pytest.mark.parametrize("age", ["", "7", "d", "-1d", "1.5d", "1y", "7d2h", f"{400 * '9'}d"])
def test_other_ages_are_refused(opened: Root, age: str) -> None:
    with pytest.raises(InputError, match="--older-than must be a number with s, m, h, d or w"):
        upkeep.gc(opened.url, older_than=age)


def test_a_folder_that_is_no_runs_root_is_left_alone(tmp_path: Path) -> None:
    attempt = tmp_path / "a" / ("0" * 32) / f"attempt-{'0' * 32}"
    attempt.mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no run's results: it has no run\.json"):
        upkeep.gc(str(tmp_path), older_than="0s", delete=True)
    assert attempt.exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (RUN_FORMAT + 1, "a newer diffmining stored.*upgrade it, or give another root"),
        (RUN_FORMAT - 1, "an older diffmining stored.*mine again into a new root"),
    ],
)
def test_results_of_other_versions_are_not_touched(opened: Root, found: int, says: str) -> None:
    record = {"format": found, "identity": {"dataset": "/data/streets"}}
    opened.write_bytes("run.json", json.dumps(record).encode())
    retract(opened, "typicality", UNITS[0].key)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(opened.url).rglob("*"))
    with pytest.raises(InputError, match=says):
        upkeep.verify(opened.url)
    with pytest.raises(InputError, match=says):
        upkeep.gc(opened.url, older_than="0s", delete=True)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in Path(opened.url).rglob("*"))


def test_the_status_of_an_older_version_is_shown(opened: Root, capsys: Output) -> None:
    opened.write_bytes("run.json", b'{"format": 1, "identity": {"dataset": "/data/streets"}}')
    upkeep.status(opened.url)
    assert "dataset: /data/streets" in capsys.readouterr().out


def test_gc_names_half_written_files(opened: Root, capsys: Output) -> None:
    left = Path(opened.url, "plans", f".typicality.json.{'1' * 32}")
    left.write_bytes(b"half")
    Path(opened.url, ".DS_Store").write_bytes(b"")
    upkeep.gc(opened.url, older_than="0s", delete=True)
    said = capsys.readouterr().out
    assert f"removed plans/{left.name}: half-written file, 1 files, 4.00B, " in said
    assert said.endswith("1 leftovers older than 0s in 1 files, 4.00B removed.\n")
    assert not left.exists()
    assert Path(opened.url, ".DS_Store").exists()


def test_check_says_for_each_need_whether_it_holds(tmp_path: Path, capsys: Output) -> None:
    upkeep.check(str(tmp_path))
    said = capsys.readouterr().out
    assert said.count("ok  ") == 8
    assert f"All 8 hold: {tmp_path} can keep results." in said
    assert list(tmp_path.iterdir()) == []


class LastWriterWins(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """As an S3 server that does not know If-None-Match."""

    protocol = "last"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("last://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, **options)


def test_check_of_a_place_that_lacks_something_ends_with_1(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("last", LastWriterWins, clobber=True)
    monkeypatch.setattr(roots, "PROTOCOLS", {*roots.PROTOCOLS, "last"})
    with pytest.raises(SystemExit) as ended:
        upkeep.check("last://place")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "NO  Conditional create: of 12 writers racing to create one file 12 were told" in said
    assert said.endswith("1 of 8 do not hold at last://place.\n")


def test_all_of_it_can_be_had_as_json_with_what_is_said_elsewhere(
    opened: Root, capsys: Output
) -> None:
    upkeep.verify(opened.url, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["units"], found["files"], found["damaged"]) == (2, 2, [])
    (value, _) = Path(opened.url).glob("typicality/*/attempt-*/maps/values")
    value.write_bytes(b"half")
    with pytest.raises(SystemExit) as ended:
        upkeep.verify(opened.url, as_json=True)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert [one["stage"] for one in json.loads(said.out)["damaged"]] == ["typicality"]
    assert "damaged typicality/" in said.err

    retract(opened, "typicality", UNITS[0].key)
    upkeep.gc(opened.url, older_than="0s", as_json=True)
    said = capsys.readouterr()
    (left,) = json.loads(said.out)["leftovers"]
    assert (left["kind"], left["stage"], left["files"]) == ("attempt", "typicality", 1)
    assert "can go typicality/" in said.err
    upkeep.check(opened.url, as_json=True)
    assert all(one["holds"] for one in json.loads(capsys.readouterr().out)["findings"])
