"""A selection built on an earlier one against the selection made of everything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest

from diffmining_core.patches.growth import Part, Update, plan_update
from diffmining_core.patches.scoring import KINDS, PATCH_SCHEMA
from diffmining_core.patches.selection import RANKED_SCHEMA, Image, TopPatches, in_groups

IMAGES = 12
LABELS = 3
COUNT = 6
Dataset = dict[str, Part]


def image(shard: str, row: int) -> Image:
    # Two rows of every three shards hold the same image, so that copies come and go.
    name = f"copy {row}" if row < 2 and int(shard) % 3 == 0 else f"{shard} {row}"
    return hashlib.sha256(name.encode()).hexdigest()[:32], f"label {row % LABELS}"


def patches(shard: str, key: str) -> pa.Table:
    rows = []
    for number in range(IMAGES):
        image_id, label = image(shard, number)
        rng = np.random.default_rng([int(image_id[:8], 16), len(key)])
        rows += [
            {
                "image_id": image_id,
                "label": label,
                "kind": kind,
                "rank": rank,
                "y": int(rng.integers(40)),
                "x": 50 * rank,
                "size": 16,
                "typicality": float(rng.integers(-6, 6)) / 8,
            }
            for kind in KINDS
            for rank in range(2)
        ]
    return pa.Table.from_pylist(rows, PATCH_SCHEMA)


def live(shard: str, part: Part) -> dict[Image, str]:
    rows = sorted(set(range(IMAGES)) - set(part.dropped), reverse=True)
    return {image(shard, row): f"/data/{shard}/{row}.png" for row in rows}


def added(top: TopPatches, dataset: Dataset, shards: Iterable[str], update: Update) -> TopPatches:
    for shard in shards:
        table = patches(shard, dataset[shard].patches_key)
        if shard not in update.added:
            table = table.filter(in_groups(table, update.groups))
        top = top.add(table, live(shard, dataset[shard]), shard)
    return top


def from_all(dataset: Dataset) -> pa.Table:
    anew = Update(RANKED_SCHEMA.empty_table(), frozenset(dataset), frozenset())
    return added(TopPatches.empty(COUNT, 7), dataset, dataset, anew).ranked()


def planned(before: Dataset, now: Dataset) -> Update:
    return plan_update(from_all(before), before, now, lambda shard: live(shard, now[shard]))


def updated(update: Update, now: Dataset) -> pa.Table:
    return added(TopPatches.of(update.kept, COUNT, 7), now, now, update).ranked()


def parts(*numbers: int, **dropped: tuple[int, ...]) -> Dataset:
    return {str(n): Part(f"patches {n}", dropped.get(f"of_{n}", ())) for n in numbers}


def test_a_new_shard_is_all_there_is_to_add() -> None:
    before, now = parts(0, 1, 2), parts(0, 1, 2, 3)
    update = planned(before, now)
    assert update.added == {"3"}
    assert not update.groups
    assert update.kept.equals(from_all(before))
    assert updated(update, now).equals(from_all(now))


def test_a_row_that_was_not_selected_leaves_without_a_trace() -> None:
    before = parts(0, 1, 2, 3)
    selected = set(from_all(before)["image_id"].to_pylist())
    shard, row = next(
        (n, row) for n in (1, 2) for row in range(IMAGES) if image(str(n), row)[0] not in selected
    )
    now = parts(0, 1, 2, 3, **{f"of_{shard}": (row,)})
    update = planned(before, now)
    assert update.added == {str(shard)}
    assert not update.groups
    assert updated(update, now).equals(from_all(now))


def test_only_the_groups_that_lost_a_patch_are_made_anew() -> None:
    before = parts(0, 1, 2, 3)
    first = from_all(before).to_pylist()[0]
    row = next(r for r in range(IMAGES) if image(first["shard"], r)[0] == first["image_id"])
    now = parts(0, 1, 2, 3, **{f"of_{first['shard']}": (row,)})
    update = planned(before, now)
    assert (first["label"], first["kind"]) in update.groups
    assert {label for label, _ in update.groups} == {first["label"]}
    assert updated(update, now).equals(from_all(now))
    back = planned(now, before)  # the row returns
    assert back.groups == frozenset()
    assert updated(back, before).equals(from_all(before))


def test_other_maps_of_a_shard_count_as_another_shard() -> None:
    before, now = parts(0, 1), parts(0, 1)
    now["1"] = Part("other patches of 1", ())
    update = planned(before, now)
    assert update.added == {"1"}
    assert update.groups
    assert updated(update, now).equals(from_all(now))


@pytest.mark.parametrize("seed", range(40))
def test_any_change_gives_what_all_shards_give(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some() -> Dataset:
        numbers = rng.choice(7, size=rng.integers(1, 7), replace=False)
        return {
            str(n): Part(
                f"patches {n}" + " again" * int(rng.random() < 0.1),
                tuple(sorted(rng.choice(IMAGES, rng.choice([0, 0, 1, 4]), replace=False).tolist())),
            )
            for n in sorted(numbers.tolist())
        }

    dataset = some()
    ranked = from_all(dataset)
    for _ in range(3):  # each built on the one before
        now = some()
        images = {shard: live(shard, part) for shard, part in now.items()}
        update = plan_update(ranked, dataset, now, images.__getitem__)
        ranked, dataset = updated(update, now), now
        assert ranked.equals(from_all(dataset))
