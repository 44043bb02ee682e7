"""The patches of all shards: what is made, what is found, what a failure costs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from mapped_root import OPTIONS, map_shard
from prefect import flow

from diffmining_core.patches.scoring import shard_patches
from diffmining_core.store.ledger import Attempt, complete, finished, published, read_table
from diffmining_core.store.maps import RaggedMaps, read_maps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import failures
from diffmining_core.store.units import Unit
from tasks.dask_client import SCHEDULER
from tasks.patches import STAGE, TABLE, patches, patches_unit
from tasks.selection import select
from tasks.units import CorruptUnitsError, Done


def stored(root: Path, key: str) -> pa.Table:
    opened = open_root(str(root))
    return read_table(opened, finished(opened, STAGE, key), TABLE)


def expected(root: Path, typicality_key: str) -> pa.Table:
    opened = open_root(str(root))
    maps = read_maps(opened, finished(opened, "typicality", typicality_key))
    return shard_patches(maps, **OPTIONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_shard_gets_its_patches_once(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [map_shard(tmp_path, number)[1] for number in range(5)]
    monkeypatch.chdir(tmp_path.parent)
    first = patches.fn(tmp_path.name, keys[1:3], OPTIONS, 0)  # relative to this folder
    done = patches.fn(str(tmp_path), keys, OPTIONS, workers)
    assert [unit.key for unit in done] == [patches_unit(key, OPTIONS).key for key in keys]
    assert [unit.computed for unit in done] == [True, False, False, True, True]
    assert all(unit.computed for unit in first)
    assert done[0].counts == {"maps": 9, "patches": 54, "too_small": 0}
    for key, unit in zip(keys, done, strict=True):
        assert stored(tmp_path, unit.key).equals(expected(tmp_path, key))

    monkeypatch.setenv(SCHEDULER, "tcp://127.0.0.1:1")  # where nobody answers
    again = patches.fn(str(tmp_path), keys, OPTIONS, workers)
    assert [unit.computed for unit in again] == [False] * 5


def test_shards_of_the_same_content_share_their_patches(tmp_path: Path) -> None:
    _, key = map_shard(tmp_path, 0)
    one, other = patches.fn(str(tmp_path), [key, key], OPTIONS, 0)
    assert one == other


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_shard_stops_no_other_and_tells_what_is_damaged(
    tmp_path: Path, workers: int
) -> None:
    keys = [map_shard(tmp_path, number)[1] for number in range(4)]
    damaged = finished(open_root(str(tmp_path)), "typicality", keys[1])
    (tmp_path / damaged.attempt / "maps.zarr" / "hw" / "c" / "0" / "0").write_bytes(b"")
    with pytest.raises(CorruptUnitsError, match=r"1 of 4 units failed: patches/") as caught:
        patches.fn(str(tmp_path), keys, OPTIONS, workers)
    assert [(e.stage, e.key) for e in caught.value.damaged] == [("typicality", keys[1])]
    wanted = {patches_unit(key, OPTIONS).key for key in keys}
    missing = wanted - published(open_root(str(tmp_path)), STAGE)
    assert missing == {patches_unit(keys[1], OPTIONS).key}
    assert failures(open_root(str(tmp_path)), STAGE).keys() == missing


def test_what_a_user_can_mend_is_said_as_it_is(tmp_path: Path) -> None:
    def produce(attempt: Attempt) -> None:
        nan = RaggedMaps.pack([], [], [], [], [], n_draws=2)
        write_maps(attempt, nan, "other.zarr")

    unit = Unit("typicality", "test", (), {})
    complete(open_root(str(tmp_path)), unit, produce)
    with pytest.raises(Exception, match=r"^unit typicality/.* has no maps") as caught:
        patches.fn(str(tmp_path), [unit.key], OPTIONS, 0)
    assert type(caught.value).__name__ == "InputError"


@pytest.mark.usefixtures("prefect_api")
def test_inside_a_flow_it_is_one_task(tmp_path: Path) -> None:
    mapped = [map_shard(tmp_path, number) for number in range(3)]
    keys = [key for _, key in mapped]

    @flow
    def run() -> tuple[list[Done], Done]:
        done = patches(str(tmp_path), keys, OPTIONS)
        dataset = [shard for shard, _ in mapped]
        return done, select(str(tmp_path), dataset, [unit.key for unit in done], top=5, seed=1)

    done, selection = run()
    assert [unit.computed for unit in done] == [True] * 3
    assert selection.counts == {"tables_read": 3, "patches": 3 * 3 * 5}
