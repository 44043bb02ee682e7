"""Stored results that were damaged: found by `verify`, and made anew where a run meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from stored import manifests, results

from diffmining_core.store.ledger import CorruptFileError, Manifest
from flows.mine import mine
from flows.parameters import MineParameters
from flows.run_ledger import RunLedger

Make = Callable[..., MineParameters]
Damage = Callable[[Path, Manifest], None]

DATA = {
    "index": "shard.parquet",
    "dataset": "shards.parquet",
    "finetune": "model/unet/diffusion_pytorch_model.safetensors",
    "typicality": "maps.zarr/values/c/0",
    "patches": "patches.parquet",
    "selection": "selection.parquet",
    "features": "features.parquet",
    "clusters": "clusters.parquet",
    "evaluation": "truth.json",
    "report": "root.html",
}
"""A file of each stage that later stages read."""


def data_file(root: Path, manifest: Manifest) -> Path:
    return root / manifest.attempt / DATA[manifest.stage]


def manifest_file(root: Path, manifest: Manifest) -> Path:
    return root / "manifests" / f"{manifest.unit}.json"


def delete(root: Path, manifest: Manifest) -> None:
    data_file(root, manifest).unlink()


def truncate(root: Path, manifest: Manifest) -> None:
    file = data_file(root, manifest)
    file.write_bytes(file.read_bytes()[:-7])


def flip(root: Path, manifest: Manifest) -> None:
    file = data_file(root, manifest)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose_the_attempt(root: Path, manifest: Manifest) -> None:
    shutil.rmtree(root / manifest.attempt)


def date_forward(root: Path, manifest: Manifest) -> None:
    file = manifest_file(root, manifest)
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99, "new": True}))


def garble(root: Path, manifest: Manifest) -> None:
    manifest_file(root, manifest).write_text("{")


DAMAGES: list[Damage] = [delete, truncate, flip, lose_the_attempt, date_forward, garble]


def one_of(root: Path, stage: str) -> Manifest:
    """A unit of the stage that the page is made of."""
    return next(m for m in manifests(root).values() if m.stage == stage)


@pytest.mark.parametrize(
    ("damage", "turn"), [(damage, place % 2) for place, damage in enumerate(DAMAGES)]
)
def test_verify_mode_finds_and_mends_damage_in_any_stage(
    root: Path, parameters: Make, damage: Damage, turn: int
) -> None:
    stages = list(DATA)[turn::2]
    mine(parameters(root))  # so that the page tells of this root
    before, hurt = results(root), [one_of(root, stage) for stage in stages]
    for manifest in hurt:
        damage(root, manifest)
    summary = mine(parameters(root, mode="verify"))
    assert summary["repaired"].keys() == {manifest.unit for manifest in hurt}
    assert summary["computed"] == dict.fromkeys(stages, 1)
    assert results(root) == before
    assert mine(parameters(root, mode="verify"))["repaired"] == {}


MET: list[tuple[str, dict[str, Any]]] = [
    ("index", {"draws": 3}),
    ("dataset", {}),
    ("finetune", {"draws": 3}),
    ("typicality", {"patch_size": 16}),
    ("patches", {"top": 3}),
    ("selection", {"k": 1}),
    ("features", {"k": 1}),
    ("clusters", {}),
    ("report", {}),
]
"""A stage, and the change of parameters with which a run reads it again."""


@pytest.mark.parametrize(
    ("stage", "changes", "damage"),
    [(stage, changes, DAMAGES[place % len(DAMAGES)]) for place, (stage, changes) in enumerate(MET)],
)
def test_a_run_that_meets_damage_mends_it_and_says_so(
    root: Path, parameters: Make, damage: Damage, stage: str, changes: dict[str, Any]
) -> None:
    if stage == "clusters":  # its table is read for the page
        shutil.rmtree(root / "manifests" / "report")
    before = results(root)
    small = parameters(root, **changes)
    for manifest in [m for m in manifests(root).values() if m.stage == stage]:
        damage(root, manifest)
    summary = mine(small)
    mended = summary["repaired"].keys()
    assert {unit.split("/")[0] for unit in mended} == {stage}
    after = results(root)
    assert {unit: after[unit] for unit in mended} == {unit: before[unit] for unit in mended}
    assert mine(small)["computed"] == {}


def test_recompute_makes_everything_anew_beside_what_was_there(
    root: Path, parameters: Make
) -> None:
    mine(parameters(root))
    before, there = results(root), manifests(root)
    summary = mine(parameters(root, mode="recompute"))
    assert summary["computed"]["typicality"] == 4
    assert results(root) == before
    for unit, manifest in manifests(root).items():
        assert manifest.attempt != there[unit].attempt
        assert (root / there[unit].attempt).exists()


def test_a_unit_that_is_damaged_twice_in_one_run_is_raised(prefect_api: str, root: Path) -> None:
    error = CorruptFileError("it is gone", "patches", "0" * 32)

    @flow
    def run_over_bad_storage() -> None:
        run = RunLedger()
        run.repair(str(root), [error])
        assert run.repaired == {}, "nothing is wrong with it when it is read again"
        run.repair(str(root), [error])

    with pytest.raises(CorruptFileError, match="it is gone"):
        run_over_bad_storage()
