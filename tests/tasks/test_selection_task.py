"""The selection of a dataset that changes: the same as from all shards, with less reading."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from mapped_root import LABELS, OPTIONS, map_shard, without

from diffmining_core.images.shard_image import ShardImage
from diffmining_core.patches.selection import SELECTION_SCHEMA, TopPatches
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Manifest, finished, read_table
from diffmining_core.store.roots import open_root
from tasks import selection
from tasks.index import good_images
from tasks.patches import patches
from tasks.selection import (
    STAGE,
    label_digests,
    of_label,
    patches_digest,
    select,
    selected,
    selection_unit,
)

TOP = 10
Picked = tuple[Shard, str]
"""A shard and the key of its patches."""


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Picked]]:
    """A root with six shards, the last two of one label each, and their patches."""
    root = tmp_path_factory.mktemp("picked") / "root"
    labels = [LABELS] * 4 + [LABELS[:1], LABELS[2:]]
    mapped = [map_shard(root, number, of_shard) for number, of_shard in enumerate(labels)]
    done = patches.fn(str(root), [key for _, key in mapped], OPTIONS, 0)
    return root, [(shard, unit.key) for (shard, _), unit in zip(mapped, done, strict=True)]


@pytest.fixture
def six(picked: tuple[Path, list[Picked]]) -> list[Picked]:
    return picked[1]


@pytest.fixture
def root(picked: tuple[Path, list[Picked]], tmp_path: Path) -> Path:
    """A copy of the root, for selections one after the other."""
    return Path(shutil.copytree(picked[0], tmp_path / "root"))


def choose(root: Path, parts: Sequence[Picked], workers: int = 0, **changes: int) -> Manifest:
    dataset, keys = zip(*parts, strict=True)
    options = {"top": TOP, "seed": 3, **changes}
    done = select.fn(str(root), dataset, keys, **options, workers=workers)
    assert done.key == selection_unit(dataset, keys, **options).key
    return finished(open_root(str(root)), STAGE, done.key)


def as_from_all(root: Path, parts: Sequence[Picked]) -> Manifest:
    """The selection at this root, which is the one at a root without earlier selections."""
    fresh = shutil.copytree(root, root.parent / uuid4().hex)
    for folder in (STAGE, f"manifests/{STAGE}"):
        shutil.rmtree(fresh / folder, ignore_errors=True)
    manifest, alone = choose(root, parts), choose(fresh, parts)
    assert alone.counts["tables_read"] == len(parts)
    assert manifest.files == alone.files  # checksums and all
    assert manifest.facts == alone.facts
    return manifest


def images(root: Path, shard: Shard) -> list[ShardImage]:
    return good_images(open_root(str(root)), shard)


def chosen_ids(root: Path, manifest: Manifest) -> set[str]:
    return set(selected(open_root(str(root)), manifest.key)["image_id"].to_pylist())


def shards_with(parts: Sequence[Picked], *labels: str) -> int:
    return sum(1 for shard, _ in parts if set(labels) & dict(shard.labels).keys())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_selection_is_that_of_the_core(
    root: Path, six: list[Picked], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SHARDS_AT_ONCE", 2)
    opened = open_root(str(root))
    best = TopPatches.empty(TOP, 3)
    for shard, key in six:
        table = read_table(opened, finished(opened, "patches", key), "patches.parquet")
        uris = {(image.image_id, image.label): image.uri for image in images(root, shard)}
        best = best.add(table, uris, shard.key)
    manifest = choose(root, six, workers)
    assert selected(opened, manifest.key).equals(best.table())
    assert manifest.counts == {"tables_read": 6, "patches": 3 * 3 * TOP}
    assert manifest.inputs == (*(shard.key for shard, _ in six), *(key for _, key in six))
    assert as_from_all(root, six[::-1]).files == manifest.files  # in another order the same


def test_what_is_stored_is_found_again(root: Path, six: list[Picked]) -> None:
    key = choose(root, six).key
    table = selected(open_root(str(root)), key)
    assert table.schema == SELECTION_SCHEMA
    highest = of_label(table, "borvik", "highest")
    assert highest["label_rank"].to_pylist() == list(range(TOP))
    assert highest["typicality"].to_pylist() == sorted(highest["typicality"].to_pylist())[::-1]
    digests = label_digests(str(root), key)
    assert digests.keys() == set(LABELS)
    assert digests["borvik"] == patches_digest(highest)
    dataset, keys = zip(*six, strict=True)
    assert not select.fn(str(root), dataset, keys, TOP, 3).computed


def test_a_new_shard_is_the_only_one_read(root: Path, six: list[Picked]) -> None:
    choose(root, six[:3])
    for count in (4, 5, 6):
        assert as_from_all(root, six[:count]).counts["tables_read"] == 1


def test_other_parameters_start_from_nothing(root: Path, six: list[Picked]) -> None:
    choose(root, six[:5])
    assert choose(root, six, top=TOP + 1).counts["tables_read"] == 6
    assert choose(root, six, seed=4).counts["tables_read"] == 6


def test_a_shard_that_left_costs_the_groups_it_had_patches_in(
    root: Path, six: list[Picked]
) -> None:
    choose(root, six)
    manifest = as_from_all(root, six[:5])  # the last had only images of cendria
    assert manifest.counts["tables_read"] == shards_with(six[:5], "cendria") == 4


def test_an_image_that_left_costs_its_groups_if_it_was_selected(
    root: Path, six: list[Picked]
) -> None:
    first = choose(root, six)
    (shard, key), others = six[0], six[1:]
    chosen = chosen_ids(root, first)
    row, image = next(
        (row, image) for row, image in enumerate(images(root, shard)) if image.image_id in chosen
    )
    lost = (without(shard, row), key)
    manifest = as_from_all(root, [lost, *others])
    assert manifest.counts["tables_read"] == shards_with(six, image.label)
    assert manifest.parameters["dropped"] == {shard.key: [row]}
    assert manifest.key != first.key
    assert image.image_id not in chosen_ids(root, manifest)
    assert choose(root, six) == first


def test_an_image_that_left_unselected_costs_its_shard_alone(root: Path, six: list[Picked]) -> None:
    chosen = chosen_ids(root, choose(root, six, top=1))
    (shard, key), others = six[0], six[1:]
    row = next(r for r, image in enumerate(images(root, shard)) if image.image_id not in chosen)
    lost = (without(shard, row), key)
    assert choose(root, [lost, *others], top=1).counts["tables_read"] == 1


def test_the_earlier_selection_with_the_least_to_read_is_built_on(
    root: Path, six: list[Picked]
) -> None:
    choose(root, six[:3])
    choose(root, six[:5])
    first = choose(root, six)
    # A patch of the last shard goes: its labels' groups anew are 4 more tables, the shard that the
    # selection without it has to read is one.
    (shard, key) = six[5]
    chosen = chosen_ids(root, first)
    row = next(r for r, image in enumerate(images(root, shard)) if image.image_id in chosen)
    manifest = as_from_all(root, [*six[:5], (without(shard, row), key)])
    assert manifest.counts["tables_read"] == 1


def test_nothing_stays_of_shards_that_are_gone(root: Path, six: list[Picked]) -> None:
    choose(root, six[:4])
    moved = [(map_shard(root, 7 + n)[0], six[n][1]) for n in range(4)]
    # The same patches, of which none has an image any more.
    assert choose(root, moved).counts == {"tables_read": 4, "patches": 0}
