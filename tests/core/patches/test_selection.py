from __future__ import annotations

import hashlib
from functools import reduce
from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from diffmining_core.patches import selection
from diffmining_core.patches.scoring import KINDS, PATCH_SCHEMA
from diffmining_core.patches.selection import (
    ALGO,
    RANKED_SCHEMA,
    SELECTION_SCHEMA,
    Image,
    TopPatches,
    in_groups,
)


def patches(shard: int, images: int, labels: int = 2, levels: int = 6) -> pa.Table:
    """A shard's patch table with few distinct typicalities, so that ties decide."""
    rng = np.random.default_rng(shard)
    rows = [
        {
            "image_id": hashlib.sha256(f"{shard} {i}".encode()).hexdigest()[:32],
            "label": f"label {i % labels}",
            "kind": kind,
            "rank": rank,
            "y": int(rng.integers(40)),
            "x": 50 * rank + int(rng.integers(30)),
            "size": 16,
            "typicality": float(rng.integers(-levels, levels)) / 8,
        }
        for i in range(images)
        for kind in KINDS
        for rank in range(2)
    ]
    return pa.Table.from_pylist(rows, PATCH_SCHEMA)


def uris(table: pa.Table) -> dict[Image, str]:
    images = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return {image: f"/data/{image[0]}.png" for image in images}


def add(top: TopPatches, table: pa.Table, shard: str = "") -> TopPatches:
    return top.add(table, uris(table), shard)


def select(tables: list[pa.Table], count: int) -> pa.Table:
    return reduce(add, tables, TopPatches.empty(count, 7)).table()


def brute_force(tables: list[pa.Table], count: int) -> list[dict[str, object]]:
    rows = [row for table in tables for row in table.to_pylist()]

    def key(row: dict[str, object]) -> tuple[object, ...]:
        where = (row["image_id"], row["y"], row["x"])
        by = {
            "highest": -float(str(row["typicality"])),
            "lowest": float(str(row["typicality"])),
            "random": hashlib.sha256(":".join(map(str, (7, *where))).encode()).hexdigest(),
        }
        return by[str(row["kind"])], *where

    result = []
    for group in sorted({(row["label"], KINDS.index(row["kind"])) for row in rows}):
        of_group = [r for r in rows if (r["label"], KINDS.index(r["kind"])) == group]
        for label_rank, row in enumerate(sorted(of_group, key=key)[:count]):
            uri = f"/data/{row['image_id']}.png"
            result.append({**row, "uri": uri, "label_rank": label_rank})
    return result


@pytest.fixture(params=[1, 100, 1 << 17])
def pending_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sort at every shard, at some, or once at the end."""
    monkeypatch.setattr(selection, "PENDING_ROWS", request.param)


@pytest.mark.usefixtures("pending_rows")
def test_the_selection_is_that_of_sorting_everything() -> None:
    tables = [patches(shard, images) for shard, images in enumerate([30, 0, 7, 1, 22])]
    for count in (1, 10, 1000):
        table = select(tables, count)
        assert table.schema == SELECTION_SCHEMA
        assert table.to_pylist() == brute_force(tables, count)


@pytest.mark.usefixtures("pending_rows")
def test_order_grouping_and_repetition_of_shards_change_nothing() -> None:
    tables = [patches(shard, 20, labels=3) for shard in range(6)]
    expected = select(tables, 10)
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = [tables[i] for i in rng.permutation(6)]
        assert select(order, 10).equals(expected)
        cut = int(rng.integers(7))
        zero = TopPatches.empty(10, 7)
        left, right = (reduce(add, part, zero) for part in (order[:cut], order[cut:]))
        assert left.merge(right).table().equals(expected)
        assert select([*order, order[0]], 10).equals(expected)


def test_an_image_found_twice_counts_once_at_its_better_place() -> None:
    """The same bytes under two names: another batch may have moved its typicality by a last bit."""
    first = patches(0, 4, labels=1)
    typicality = pa.array(first["typicality"].to_numpy() + np.float32(0.25))
    second = first.set_column(first.schema.names.index("typicality"), "typicality", typicality)
    zero = TopPatches.empty(100, 7)
    tops = [add(zero, a).merge(add(zero, b)) for a, b in ((first, second), (second, first))]
    for kind, better in (("highest", second), ("lowest", first)):
        expected = better.filter(pc.equal(better["kind"], kind))["typicality"].to_pylist()
        for top in tops:
            table = top.table()
            found = table.filter(pc.equal(table["kind"], kind))["typicality"].to_pylist()
            assert sorted(found) == sorted(expected)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PENDING_ROWS", 1)
    top = TopPatches.empty(5, 7)
    for shard in range(30):
        table = patches(shard, 20)
        top = add(top, table)
        held = top.kept.num_rows + sum(pending.num_rows for pending in top.pending)
        assert top.kept.num_rows <= 2 * 3 * 5  # labels × kinds × count
        assert held <= 2 * 3 * 5 + table.num_rows


def test_patches_of_images_that_do_not_count_are_left_out() -> None:
    """A map stays stored when its image leaves the dataset, or is given another label."""
    table = patches(0, 10)
    gone = [(row["image_id"], row["label"]) for row in table.slice(0, 12).to_pylist()]
    counted = {image: uri for image, uri in uris(table).items() if image not in gone}
    relabelled = {(image_id, "another"): "/data/x.png" for image_id, _ in gone}
    top = TopPatches.empty(100, 7).add(table, counted | relabelled, "")
    assert top.table().equals(select([table.slice(12)], 100))


def test_a_selection_is_taken_up_where_it_was_left() -> None:
    tables = [patches(shard, 20) for shard in range(4)]
    zero = TopPatches.empty(10, 7)
    whole = reduce(lambda top, i: add(top, tables[i], f"shard {i}"), range(4), zero).ranked()
    assert whole.schema == RANKED_SCHEMA
    first = reduce(lambda top, i: add(top, tables[i], f"shard {i}"), (3, 1), zero).ranked()
    second = reduce(lambda top, i: add(top, tables[i], f"shard {i}"), (0, 2), zero).settled()
    assert TopPatches.of(first, 10, 7).merge(second).ranked().equals(whole)
    for i in range(4):
        own = whole.filter(pc.equal(whole["shard"], f"shard {i}"))["image_id"].to_pylist()
        assert set(own) <= set(tables[i]["image_id"].to_pylist())
        assert own


def test_of_copies_that_are_alike_one_is_always_the_same() -> None:
    table = patches(0, 4)
    zero = TopPatches.empty(100, 7)
    copies = [
        zero.add(table, {image: f"/{place}/{image[0]}" for image in uris(table)}, f"shard {shard}")
        for place, shard in (("b", 0), ("a", 2), ("a", 1))
    ]
    expected = copies[2].ranked()
    for order in permutations(copies):
        assert reduce(TopPatches.merge, order, zero).ranked().equals(expected)


def test_groups_are_a_label_and_a_kind() -> None:
    table = patches(0, 6)
    wanted = {("label 0", "highest"), ("label 1", "random")}
    found = table.filter(in_groups(table, wanted))
    pairs = list(zip(found["label"].to_pylist(), found["kind"].to_pylist(), strict=True))
    assert set(pairs) == wanted
    assert len(pairs) == 12
    assert table.filter(in_groups(table, set())).num_rows == 0


def test_nothing_gives_an_empty_selection() -> None:
    table = TopPatches.empty(10, 0).table()
    assert table.schema == SELECTION_SCHEMA
    assert table.num_rows == 0


def test_the_seed_changes_the_random_patches_alone() -> None:
    table = patches(0, 40)
    one, two = (add(TopPatches.empty(8, seed), table).table() for seed in (1, 2))
    for kind in KINDS:
        same = [t.filter(pc.equal(t["kind"], kind)) for t in (one, two)]
        assert same[0].equals(same[1]) == (kind != "random")


def test_selections_of_other_runs_do_not_add_up() -> None:
    for other in (TopPatches.empty(11, 0), TopPatches.empty(10, 1)):
        with pytest.raises(ValueError, match="do not add up"):
            TopPatches.empty(10, 0).merge(other)


def test_golden() -> None:
    """Another selection under the same ALGO would mix with those stored: raise it with them."""
    table = select([patches(shard, 20) for shard in range(3)], 10)
    rows = str(table.drop_columns(["typicality"]).to_pylist())
    assert (ALGO, hashlib.sha256(rows.encode()).hexdigest()[:16]) == (
        "selection-1",
        "b933851265bc050c",
    )
