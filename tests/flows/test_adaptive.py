"""Mining in rounds: more draws only where a patch may still enter or leave its label's top."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import results

from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.maps import RaggedMaps, read_maps
from diffmining_core.store.roots import open_root
from flows.dry_run import dry_run
from flows.mine import mine
from flows.parameters import MineParameters

Make = Callable[..., MineParameters]
Mined = tuple[Path, dict[str, Any]]

ADAPTIVE = {"adaptive": True, "draws": 20, "top": 5, "finetune_steps": 0}
"""Rounds of 8, 12 and 20 draws; of some 20 patches of a label the first 5."""


@pytest.fixture(scope="module")
def mined(prefect_api: str, parameters: Make, tmp_path_factory: pytest.TempPathFactory) -> Mined:
    root = tmp_path_factory.mktemp("rounds") / "root"
    return root, mine(parameters(root, **ADAPTIVE))


def final_maps(root: Path) -> list[RaggedMaps]:
    """Of the units that no other is measured further from."""
    opened = open_root(str(root))
    manifests = read_manifests(opened, "typicality")
    earlier = {m.inputs[2] for m in manifests if len(m.inputs) > 2}
    return [read_maps(opened, m) for m in manifests if m.key not in earlier]


def by_row(maps: list[RaggedMaps]) -> dict[tuple[str, str], tuple[int, Any, Any]]:
    return {
        (image_id, label): (int(one.n_draws[i]), one.map(i), one.standard_error(i))
        for one in maps
        for i, (image_id, label) in enumerate(zip(one.image_id, one.label, strict=True))
    }


def test_some_images_get_all_draws_and_some_only_the_first(mined: Mined) -> None:
    root, summary = mined
    found = by_row(final_maps(root))
    assert len(found) == 16
    draws = Counter(n for n, _, _ in found.values())
    assert set(draws) <= {8, 12, 20}
    assert draws[20] > 0
    assert draws[8] + draws[12] > 0
    mean = sum(n * count for n, count in draws.items()) / 16
    assert summary["adaptive"]["draws"] == pytest.approx(mean)
    forwards = sum(
        m.counts["unet_forwards"] for m in read_manifests(open_root(str(root)), "typicality")
    )
    assert forwards == 2 * sum(n * count for n, count in draws.items())


def test_a_dry_run_bounds_the_rounds_and_knows_when_they_are_over(
    mined: Mined, parameters: Make, tmp_path: Path
) -> None:
    root, summary = mined
    told = {one.what: one.value for one in dry_run(parameters(tmp_path / "new", **ADAPTIVE))}
    assert told["typicality"]["forwards"] == 2 * 8 * 16
    rounds = told["further rounds"]
    embedded = sum(
        m.counts.get("unet_forwards", 0) for m in read_manifests(open_root(str(root)), "features")
    )
    further = summary["unet_forwards"] - embedded - 2 * 8 * 16
    assert 0 < further <= rounds["forwards"] <= 2 * 12 * 16
    assert rounds["at_most"]
    after = {one.what: one.value for one in dry_run(parameters(root, **ADAPTIVE))}
    assert after["further rounds"]["forwards"] == after["typicality"]["forwards"] == 0


def test_a_map_is_the_one_of_as_many_draws_in_one_go(
    mined: Mined, parameters: Make, tmp_path: Path
) -> None:
    root = tmp_path / "whole"
    mine(parameters(root, **ADAPTIVE | {"adaptive": False}))
    whole = by_row(final_maps(root))
    compared = 0
    for row, (draws, mean, error) in by_row(final_maps(mined[0])).items():
        if draws == 20:
            compared += 1
            _, expected, expected_error = whole[row]
            np.testing.assert_allclose(mean, expected, atol=1e-5 * np.abs(expected).max())
            np.testing.assert_allclose(error, expected_error, rtol=1e-3)
    assert compared


def test_the_page_and_the_summary_say_how_sure_the_top_is(mined: Mined) -> None:
    root, summary = mined
    sure = summary["adaptive"]
    assert set(sure["agreement"]) == {"Almara", "Borvik", "Cendria", "Dorrava"}
    assert all(0.5 <= share <= 1 for share in sure["agreement"].values())
    page = (root / "index.html").read_text()
    assert f"{sure['draws']:.1f} of 20 on average, in rounds" in page
    assert f"{100 * sure['overall']:.0f} %" in page


def test_the_same_again_measures_nothing(
    mined: Mined, parameters: Make, forwards: Counter[str]
) -> None:
    before = results(mined[0])
    summary = mine(parameters(mined[0], **ADAPTIVE))
    assert forwards["images"] == 0
    assert summary["computed"] == {}
    assert results(mined[0]) == before


def test_a_run_that_was_stopped_goes_on_in_its_round(
    mined: Mined, parameters: Make, tmp_path: Path, forwards: Counter[str]
) -> None:
    """Without the maps of the last round, and all that was made of them."""
    root = Path(shutil.copytree(mined[0], tmp_path / "stopped"))
    manifests = read_manifests(open_root(str(root)), "typicality")
    last = [m for m in manifests if m.parameters["draws"] == 20]
    assert last
    for manifest in last:
        for record in root.rglob(f"{manifest.key}.json"):
            record.unlink()
    mine(parameters(root, **ADAPTIVE))
    assert forwards["images"] == sum(m.counts["unet_forwards"] for m in last)
    expected = by_row(final_maps(mined[0]))
    for row, (draws, mean, _) in by_row(final_maps(root)).items():
        assert draws == expected[row][0]
        np.testing.assert_array_equal(mean, expected[row][1])


def test_shards_and_their_order_change_no_draw(
    mined: Mined, parameters: Make, tmp_path: Path
) -> None:
    root = tmp_path / "one shard"
    mine(parameters(root, **ADAPTIVE, shard_rows=16))
    found, expected = by_row(final_maps(root)), by_row(final_maps(mined[0]))
    assert {row: n for row, (n, _, _) in found.items()} == {
        row: n for row, (n, _, _) in expected.items()
    }


def test_a_dataset_that_grows_keeps_the_draws_that_it_has(
    scenes: Path, parameters: Make, tmp_path: Path
) -> None:
    """A new shard is measured from its first draw, old ones only where they are undecided now."""
    dataset, root = tmp_path / "growing", tmp_path / "root"
    for label in ("Almara", "Borvik"):
        (dataset / label).mkdir(parents=True)
        for image in sorted((scenes / label).iterdir())[:3]:
            shutil.copy(image, dataset / label)
    changes = ADAPTIVE | {"dataset": str(dataset), "shard_rows": 6}
    mine(parameters(root, **changes))
    before = by_row(final_maps(root))
    for label in ("Almara", "Borvik"):
        for image in sorted((scenes / label).iterdir())[3:5]:
            shutil.copy(image, dataset / label)
    summary = mine(parameters(root, **changes))
    assert summary["images"] == 10
    refinements = [
        m
        for m in read_manifests(open_root(str(root)), "refinement")
        if m.parameters["draws"] is None
    ]
    newest = max(refinements, key=lambda manifest: manifest.created)
    opened = open_root(str(root))
    maps = [read_maps(opened, m) for m in read_manifests(opened, "typicality", newest.inputs[1:])]
    after = by_row(maps)
    assert len(after) == 10
    assert all(after[row][0] >= draws for row, (draws, _, _) in before.items())
    assert mine(parameters(root, **changes))["computed"] == {}
