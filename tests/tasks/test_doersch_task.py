"""Doersch et al. over shards of images whose labels have a pattern each."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from patterned_scenes import LABELS, PATTERN, SIZE, Corners, indexed, write_scenes

from diffmining_core.baselines.doersch import MATCHES, ROUNDS
from diffmining_core.errors import InputError
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import finished, read_manifests, read_table
from diffmining_core.store.roots import open_root
from tasks import doersch, patches
from tasks.doersch_results import DETECTORS, DETECTORS_STAGE
from tasks.index import good_images

SEEDS, KEPT, SEED = 40, 6, 3
OPTIONS = {"size": SIZE, "patch_size": PATTERN}


def mined(root: str, dataset: Sequence[Shard]) -> tuple[list[str], str]:
    """The keys of the cells, and of the elements."""
    cells = [doersch.cells.fn(root, shard, OPTIONS).key for shard in dataset]
    first = doersch.choose_seeds.fn(root, dataset, cells, SEEDS, SEED).key
    detectors = first
    for _ in range(ROUNDS):
        found = [doersch.matches.fn(root, one, detectors, MATCHES, "cpu").key for one in cells]
        given = (root, cells, first, detectors, found, KEPT, SEED)
        detectors = doersch.train_detectors.fn(*given).key
    found = [doersch.matches.fn(root, one, detectors, MATCHES, "cpu").key for one in cells]
    return cells, doersch.rank_elements.fn(root, cells, detectors, found, MATCHES).key


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corners]:
    folder = tmp_path_factory.mktemp("patterned") / "scenes"
    return folder, write_scenes(folder, 8)


@pytest.fixture(scope="module")
def of_shards(
    scenes: tuple[Path, Corners], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Shard], list[str], str]:
    """A root where shards of six images were mined: with the shards, and the keys."""
    root = str(tmp_path_factory.mktemp("mined") / "root")
    dataset = indexed(root, scenes[0], 6)
    return root, dataset, *mined(root, dataset)


def test_the_best_elements_fire_at_one_place_of_the_labels_pattern(
    of_shards: tuple[str, list[Shard], list[str], str], scenes: tuple[Path, Corners]
) -> None:
    """Some part of a pattern and of what is around it: always the same, in every image."""
    root, dataset, _, elements = of_shards
    opened = open_root(root)
    names = {
        image.image_id: image.uri.rpartition("/")[2]
        for shard in dataset
        for image in good_images(opened, shard)
    }
    table = doersch.elements(opened, elements)
    for label, element in product(LABELS, range(3)):
        found = table.filter((pc.field("label") == label) & (pc.field("element") == element))
        assert found.num_rows == found["with_label"][0].as_py() == 8
        corners = np.array([scenes[1][names[one]] for one in found["image_id"].to_pylist()])
        offset = np.stack([found["y"].to_numpy(), found["x"].to_numpy()], axis=1) - corners
        assert (np.abs(offset) < PATTERN).all()  # each overlaps the pattern
        same_place = (np.abs(offset - np.median(offset, axis=0)) <= 2).all(axis=1)
        assert same_place.sum() >= 4


def test_detectors_are_the_best_seeds_trained_in_rounds(
    of_shards: tuple[str, list[Shard], list[str], str],
) -> None:
    opened = open_root(of_shards[0])
    manifests = read_manifests(opened, DETECTORS_STAGE)
    (seeds,) = (m for m in manifests if "seeds" in m.parameters)
    trained = [m for m in manifests if "kept" in m.parameters]
    assert len(trained) == ROUNDS
    assert seeds.counts["detectors"] <= 2 * SEEDS
    labels = read_table(opened, seeds, DETECTORS)["label"].to_pylist()
    assert labels == sorted(labels)
    for manifest in trained:
        table = read_table(opened, manifest, DETECTORS)
        assert max(table["label"].to_pylist().count(label) for label in LABELS) <= KEPT
        assert any(offset != 0 for offset in table["offset"].to_pylist())
    order = sorted(trained, key=lambda m: m.inputs[1] != seeds.key)
    taken = [
        sum(len(row) for row in read_table(opened, m, DETECTORS)["taken"].to_pylist())
        for m in order
    ]
    assert max(taken[1:]) >= taken[0]  # what a detector took for its own is never forgotten


def test_one_shard_gives_what_several_give(
    of_shards: tuple[str, list[Shard], list[str], str], scenes: tuple[Path, Corners], tmp_path: Path
) -> None:
    several = doersch.elements(open_root(of_shards[0]), of_shards[3])
    root = str(tmp_path / "root")
    _, elements = mined(root, indexed(root, scenes[0], 100))
    one = doersch.elements(open_root(root), elements)
    columns = one.column_names
    assert one.sort_by([(name, "ascending") for name in columns]).equals(
        several.sort_by([(name, "ascending") for name in columns])
    )


def test_patches_are_the_windows_of_the_shards_own_images(
    of_shards: tuple[str, list[Shard], list[str], str],
) -> None:
    root, dataset, cells, elements = of_shards
    opened = open_root(root)
    for shard, key in zip(dataset, cells, strict=True):
        done = doersch.element_patches.fn(root, key, elements, PATTERN, 2)
        table = read_table(opened, finished(opened, patches.STAGE, done.key), patches.TABLE)
        images = {(image.image_id, image.label) for image in good_images(opened, shard)}
        rows = table.select(["image_id", "label", "rank", "y", "x"]).to_pylist()
        assert rows
        assert {(row["image_id"], row["label"]) for row in rows} <= images
        assert max(row["rank"] for row in rows) <= 1
        assert all(0 <= row[at] <= SIZE - PATTERN for row in rows for at in ("y", "x"))


def test_a_single_label_is_refused(scenes: tuple[Path, Corners], tmp_path: Path) -> None:
    shutil.copytree(scenes[0] / "fall", tmp_path / "one" / "fall")
    root = str(tmp_path / "root")
    dataset = indexed(root, tmp_path / "one", 100)
    cells = [doersch.cells.fn(root, shard, OPTIONS).key for shard in dataset]
    with pytest.raises(InputError, match="tells labels apart"):
        doersch.choose_seeds.fn(root, dataset, cells, SEEDS, SEED)
