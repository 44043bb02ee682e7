from __future__ import annotations

from functools import reduce
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest

from diffmining_core.patches import sequences
from diffmining_core.patches.sequences import ALGO, SEQUENCE_SCHEMA, TopSequences


def shard(number: int, rows: int = 12) -> pa.Table:
    rng = np.random.default_rng(number)
    return pa.Table.from_pylist(
        [
            {
                "image_id": f"{number}-{row // 3}",
                "label": ("oslo", "rome")[row % 2],
                "rank": row % 3,
                "y": int(rng.integers(0, 50)),
                "x": row,
                "size": 16,
                "cotypicality": float(np.round(rng.normal(), 1)),  # some are equal
                "labels": ["oslo", "rome"],
                "typicality": [float(row), 0.5],
                "own": ["oslo"],
            }
            for row in range(rows)
        ],
        schema=SEQUENCE_SCHEMA,
    )


SHARDS = [shard(number) for number in range(4)]


def test_the_highest_over_all_labels_come_first_ties_by_place() -> None:
    best = reduce(TopSequences.add, SHARDS, TopSequences.empty(20)).table()
    assert best.schema == SEQUENCE_SCHEMA
    every = pa.concat_tables(SHARDS).to_pylist()
    places = ("image_id", "label", "y", "x")
    every.sort(key=lambda row: (-row["cotypicality"], *(row[name] for name in places)))
    assert best.to_pylist() == every[:20]


def test_shards_in_any_order_and_twice_give_the_same() -> None:
    expected = reduce(TopSequences.add, SHARDS, TopSequences.empty(15)).table()
    for order in list(permutations(SHARDS))[::5]:
        found = reduce(TopSequences.add, (*order, order[0]), TopSequences.empty(15))
        assert found.table().equals(expected)


def test_memory_is_bounded_by_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "PENDING_ROWS", 30)
    best = TopSequences.empty(10)
    for number in range(40):
        best = best.add(shard(number))
        assert best.kept.num_rows + sum(table.num_rows for table in best.pending) <= 10 + 30
    every = reduce(TopSequences.add, map(shard, range(40)), TopSequences.empty(10))
    assert best.table().equals(every.table())


def test_fewer_than_asked_and_none() -> None:
    assert TopSequences.empty(5).table().equals(SEQUENCE_SCHEMA.empty_table())
    assert TopSequences.empty(5).add(shard(1, rows=0)).pending == ()
    assert TopSequences.empty(100).add(shard(1)).table().num_rows == 12


def test_golden() -> None:
    """Other sequences under the same ALGO would mix with those stored: raise it with them."""
    best = reduce(TopSequences.add, SHARDS, TopSequences.empty(6)).table()
    names = [f"{row['image_id']}:{row['x']}" for row in best.to_pylist()]
    assert (ALGO, names) == ("sequences-1", ["2-0:2", "2-1:3", "2-2:6", "0-1:4", "1-0:2", "1-0:0"])
