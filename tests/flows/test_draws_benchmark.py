"""The benchmark of draws against forwards: what it follows is what mining does."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffmining_core.evaluation.agreement import same_patches
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.patches.scoring import patch_scores
from diffmining_core.results.references import results_of, summarised_report
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import open_root
from diffmining_core.typicality.draws import PAIRED
from flows.mine import mine
from flows.parameters import MineParameters
from tasks.models import choose_device
from tasks.selection import selected

REPOSITORY = Path(__file__).parents[2]

Make = Callable[..., MineParameters]
Mined = tuple[Path, dict[str, Any]]

ROUNDS = {
    **{"adaptive": True, "draws": 20, "top": 5},
    **{"finetune_steps": 1, "before_shards": 0, "shard_rows": 16},
}
"""Rounds of 8, 12 and 20 draws; of some 20 patches of a label the first 5."""


@pytest.fixture(autouse=True)
def repository_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are no part of the installed package."""
    monkeypatch.syspath_prepend(str(REPOSITORY))


@pytest.fixture(scope="module")
def mined(prefect_api: str, parameters: Make, tmp_path_factory: pytest.TempPathFactory) -> Mined:
    root = tmp_path_factory.mktemp("draws") / "root"
    return root, mine(parameters(root, **ROUNDS))


def quick(root: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from benchmarks import draws

    options = ["--device", "cpu", "--quick", "--results", str(results)]
    command = ["draws", "--root", str(root), "--work", str(results / "work"), "--name", "x"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    draws.main()
    found: dict[str, Any] = json.loads((results / "draws-x.json").read_text(encoding="utf-8"))
    return found


def test_what_is_followed_is_what_mining_does(mined: Mined, tmp_path: Path) -> None:
    from benchmarks import draws

    root, summary = mined
    there = draws.mined_there(open_root(str(root)), 16)
    work = open_root(str(tmp_path))
    settings = draws.Settings(images=16, converged=8, draws=20, tops=(5,))
    parts = draws.variants(there, settings)[there.options.seed, PAIRED]
    wanted = [draws.Part("paired", part) for part in parts]
    draws.measure_missing(there, work, wanted, choose_device("cpu"))
    maps = draws.maps_by_draws(there, work, parts)
    highest = {n: draws.scored(one, there.patches) for n, one in maps.items()}
    found = draws.followed(highest, there.rows, top=5)

    key = summarised_report(open_root(str(root)))
    assert key is not None
    results = results_of(open_root(str(root)), key)
    opened = open_root(str(root))
    manifests = {manifest.key: manifest for manifest in read_manifests(opened, "typicality")}
    really = [read_maps(opened, manifests[key]) for key in results.typicality]
    assert found.draws == {
        (image_id, label): int(n)
        for one in really
        for image_id, label, n in zip(one.image_id, one.label, one.n_draws, strict=True)
    }
    assert len(set(found.draws.values())) > 1
    assert found.expected == pytest.approx(summary["adaptive"]["overall"], abs=1e-4)
    assert same_patches(found.selection, selected(opened, results.selection)) == 1
    assert found.forwards == sum(m.counts["unet_forwards"] for m in manifests.values())


def test_a_quick_run_says_something_of_every_way_to_draw(
    mined: Mined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: Counter[str]
) -> None:
    from benchmarks.draws_table import COLOURS, IN_ROUNDS, SHARES

    found = quick(mined[0], tmp_path, monkeypatch)
    # 4 images: 12 draws for each spread and for the converged maps, with and without the label
    assert forwards["images"] == 4 * 2 * 12 * (len(COLOURS) + 1)
    plain = {(row["spread"], row["draws"], row["top"]): row for row in found["plain"]}
    assert set(plain) == set(itertools.product(COLOURS, (8, 12), (1, 3)))
    adaptive = {(row["spread"], row["share"], row["top"]): row for row in found["adaptive"]}
    assert set(adaptive) == set(itertools.product(IN_ROUNDS, SHARES, (1, 3)))
    for row in (*plain.values(), *adaptive.values()):
        assert 0 <= row["overlap"] <= 1
    for row in adaptive.values():
        assert 8 <= row["draws"] <= 12
        assert row["forwards"] == pytest.approx(2 * row["draws"])
        assert row["cost"] == pytest.approx(row["draws"] / 12)
    markdown = (tmp_path / "draws-x.md").read_text(encoding="utf-8")
    assert "--root root --images 4 " in markdown
    assert str(mined[0].parent) not in markdown
    assert (tmp_path / "draws-x.svg").read_text(encoding="utf-8").startswith("<svg")
    with Image.open(tmp_path / "draws-x.png") as picture:
        assert picture.width == 1920

    # One that was stopped goes on with the round that is missing.
    (record, *_) = sorted((tmp_path / "work").rglob("manifests/draws/*.json"))
    part = json.loads(record.read_text())["parameters"]
    record.unlink()
    forwards.clear()
    again = quick(mined[0], tmp_path, monkeypatch)
    assert forwards["images"] == 4 * 2 * (part["draws"] - part["after"])
    assert again["adaptive"] == found["adaptive"]


def packed(maps: list[Any], m2: Any) -> RaggedMaps:
    n = len(maps)
    names = [str(i) for i in range(n)]
    return RaggedMaps.pack(maps, [m2] * n, [1.0] * n, names, names, 9, 1, 2, [m2] * n)


def test_errors_are_those_of_the_scores_of_windows() -> None:
    from benchmarks.draws import own_error, squared_error

    rng = np.random.default_rng(0)
    ones, right = ([rng.random((4, 6)).astype(np.float32) for _ in range(2)] for _ in range(2))
    found = squared_error(packed(ones, ones[0]), packed(right, ones[0]), window=2)
    scores = [
        patch_scores(one, (4, 6), 2) - patch_scores(other, (4, 6), 2)
        for one, other in zip(ones, right, strict=True)
    ]
    assert found == pytest.approx(np.mean(np.square(scores)), rel=1e-5)
    m2 = np.full((4, 6), 9 * 8 * 0.25, np.float32)
    assert own_error(packed(right, m2), window=2) == pytest.approx(0.25)


def test_of_each_label_the_same_number_of_images() -> None:
    from benchmarks.draws import of_each_label

    rows = [ShardImage(f"{i}", f"{i}.png", "a" if i < 7 else "b", 64, 64) for i in range(9, -1, -1)]
    rows.append(ShardImage("0", "again.png", "a", 64, 64))
    assert [one.image_id for one in of_each_label(rows, 5)] == ["0", "1", "7", "8"]
    assert len(of_each_label(rows, 100)) == 6
    assert [one.image_id for one in of_each_label(rows, 1)] == ["0", "7"]


def test_a_root_without_a_page_is_named(tmp_path: Path) -> None:
    from benchmarks.draws import mined_there
    from diffmining_core.errors import InputError

    with pytest.raises(InputError, match="has no page; mine a dataset there first"):
        mined_there(open_root(str(tmp_path)), 8)


def test_names_stand_apart_and_near_their_lines() -> None:
    from benchmarks.draws_chart import apart

    assert apart([10, 50, 90], 15) == [10, 50, 90]
    assert apart([52, 50], 15) == pytest.approx([58.5, 43.5])
    assert apart([30, 31, 32, 80], 15) == pytest.approx([16, 31, 46, 80])
    rng = np.random.default_rng(0)
    for _ in range(50):
        placed = sorted(apart(list(100 * rng.random(5)), 15))
        assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(placed))
