"""Reference training over shards of images whose labels have a pattern each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patterned_scenes import LABELS, PATTERN, SIZE, Corners, indexed, write_scenes
from PIL import Image

from diffmining_core.baselines import doersch_reference as reference
from diffmining_core.baselines.doersch import MATCHES, POSITIVES, RANKING_MATCHES, ROUNDS
from diffmining_core.baselines.windows import CELLS
from diffmining_core.results.references import Shard
from diffmining_core.store.roots import open_root
from tasks import doersch, doersch_reference
from tasks.doersch_results import Shards, all_matches, read_detectors
from tasks.index import good_images

SEEDS, KEPT, SEED = 30, 4, 3
NEGATIVES, LEAST = 60, 20
OPTIONS = {"size": SIZE, "patch_size": PATTERN}


class Mined:
    """A root where detectors were trained: the keys of each round's detectors and positives."""

    def __init__(self, root: str, dataset: Sequence[Shard]) -> None:
        self.root, self.dataset = root, dataset
        self.cells = [doersch.cells.fn(root, shard, OPTIONS).key for shard in dataset]
        seeds = doersch.choose_seeds.fn(root, dataset, self.cells, SEEDS, SEED).key
        found = self.matches(seeds, MATCHES)
        kept = doersch_reference.keep_seeds.fn(root, self.cells, seeds, found, KEPT).key
        self.detectors, self.positives = [kept], list[list[str]]()
        for round_ in range(ROUNDS):
            given = (self.detectors[-1], round_, SEED)
            self.positives.append(
                [doersch_reference.positives.fn(root, one, *given, "cpu").key for one in self.cells]
            )
            last = (self.detectors[-1], self.positives[-1], round_, SEED, NEGATIVES, LEAST)
            self.detectors.append(doersch_reference.train_round.fn(root, self.cells, *last).key)
        found = self.matches(self.detectors[-1], RANKING_MATCHES)
        ranked = (self.detectors[-1], found, RANKING_MATCHES)
        self.elements = doersch.rank_elements.fn(root, self.cells, *ranked).key

    def matches(self, detectors: str, count: int) -> list[str]:
        """The keys of where detectors fire."""
        return [
            doersch.matches.fn(self.root, one, detectors, count, "cpu").key for one in self.cells
        ]

    def rows(self, round_: int) -> list[dict[str, Any]]:
        """The detectors before a round."""
        table, _ = read_detectors(open_root(self.root), self.detectors[round_])
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corners]:
    folder = tmp_path_factory.mktemp("patterned") / "scenes"
    return folder, write_scenes(folder, 8)


@pytest.fixture(scope="module")
def mined(scenes: tuple[Path, Corners], tmp_path_factory: pytest.TempPathFactory) -> Mined:
    root = str(tmp_path_factory.mktemp("mined") / "root")
    return Mined(root, indexed(root, scenes[0], 6))


def test_detectors_are_the_best_seeds_and_their_weights_have_no_offset(mined: Mined) -> None:
    counts = [row["label"] for row in mined.rows(0)]
    assert 0 < max(counts.count(label) for label in LABELS) <= KEPT
    weights = [read_detectors(open_root(mined.root), key)[1] for key in mined.detectors]
    for before, after in pairwise(weights):
        assert (np.abs(before.weights - after.weights).max(axis=1) > 0).all()
        assert not after.offsets.any()


def test_positives_lie_in_images_of_the_label_and_in_the_rounds_third(mined: Mined) -> None:
    opened = open_root(mined.root)
    shards = Shards(opened, mined.cells)
    for round_, keys in enumerate(mined.positives):
        rows = mined.rows(round_)
        found = all_matches(opened, keys, len(rows), POSITIVES)
        for number, row in enumerate(rows):
            windows = reference.positive_windows(found, number)
            assert len({window[:2] for window in windows}) == POSITIVES  # of 8 images
            for shard, image, down, across in windows:
                about = shards.images(shard)[image]
                assert row["label"] in about["labels"]
                grid = about["rows"] - CELLS + 1, about["columns"] - CELLS + 1
                seen = reference.third(grid, about["image_id"], round_, SEED)
                assert down * grid[1] + across in seen


def test_the_best_elements_fire_at_their_labels_pattern(
    mined: Mined, scenes: tuple[Path, Corners]
) -> None:
    """Of up to 100 matches, one an image, all eight of the label; most of them on the pattern."""
    opened = open_root(mined.root)
    names = {
        image.image_id: image.uri.rpartition("/")[2]
        for shard in mined.dataset
        for image in good_images(opened, shard)
    }
    best = [
        row for row in doersch.elements(opened, mined.elements).to_pylist() if row["element"] == 0
    ]
    assert {row["with_label"] for row in best} == {8}
    hits = []
    for row in best:
        y, x = scenes[1][names[row["image_id"]]]
        hits.append(abs(row["y"] - y) < PATTERN and abs(row["x"] - x) < PATTERN)
    assert np.mean(hits) > 0.8


def test_one_shard_gives_what_several_give(
    mined: Mined, scenes: tuple[Path, Corners], tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    one = Mined(root, indexed(root, scenes[0], 100))
    tables = [doersch.elements(open_root(m.root), m.elements) for m in (mined, one)]
    order = [(name, "ascending") for name in tables[0].column_names]
    assert tables[0].sort_by(order).equals(tables[1].sort_by(order))


def test_hard_negatives_are_kept_for_the_next_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of the other label shows what all of this one show; a greater C lets it count."""
    monkeypatch.setattr(reference, "SVM_C", 20.0)
    monkeypatch.setattr("test_doersch_reference_task.NEGATIVES", 2000)
    write_scenes(tmp_path / "scenes", 8)
    with Image.open(tmp_path / "scenes" / "fall" / "fall-0.png") as image:
        pixels = np.asarray(image).copy()
    names = [*(f"fall/fall-{number}.png" for number in range(8)), "rise/wrong.png"]
    for number, name in enumerate(names):
        pixels[0, 0, 0] = number  # other files, nearly the same windows
        Image.fromarray(pixels).save(tmp_path / "scenes" / name)
    root = str(tmp_path / "root")
    mined = Mined(root, indexed(root, tmp_path / "scenes", 8))
    shards = Shards(open_root(root), mined.cells)
    taken = [[row["taken"] for row in mined.rows(round_)] for round_ in range(ROUNDS + 1)]
    assert not any(taken[0])
    assert any(taken[1])
    for before, after in pairwise(taken):
        assert all(new[: len(old)] == old for old, new in zip(before, after, strict=True))
    for row in mined.rows(ROUNDS):
        windows = np.array(row["taken"]).reshape(-1, 4).tolist()
        assert len({tuple(window) for window in windows}) == len(windows)
        assert all(row["label"] not in shards.images(one[0])[one[1]]["labels"] for one in windows)
