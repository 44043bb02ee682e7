"""What a dry run tells is what the run then makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.recipes import MINED
from diffmining_core.store.ledger import read_manifests, retract
from diffmining_core.store.roots import open_root
from flows.cli import app
from flows.dry_run import dry_run
from flows.mine import mine
from flows.parameters import MineParameters, TypicalityParameters
from tasks.expected import ExpectedShard, expected_shards
from tasks.index import index

Make = Callable[..., MineParameters]
FirstRun = tuple[Path, dict[str, Any], int]


def told(parameters: TypicalityParameters, cost: float | None = None) -> dict[str, Any]:
    return {one.what: one.value for one in dry_run(parameters, cost)}


def made(root: Path, stage: str) -> int:
    manifests = read_manifests(open_root(str(root)), stage)
    return sum(manifest.counts.get("unet_forwards", 0) for manifest in manifests)


def test_a_new_root_takes_what_was_told_and_is_left_alone(
    first_run: FirstRun, parameters: Make, tmp_path: Path
) -> None:
    mined, _, counted = first_run
    root = tmp_path / "new"
    found = told(parameters(root), 2.5)
    assert not root.exists()
    assert (found["images"], found["labels"], found["shards"]) == (16, 4, 3)
    assert found["finetune"]["forwards"] == made(mined, "finetune") == 6 * 2
    measured = [found[name]["forwards"] for name in ("typicality", "typicality before finetuning")]
    assert measured[0] == 2 * 2 * 16
    # The first shard by content may be that of 4 images: known once they are indexed.
    assert sum(measured) - made(mined, "typicality") in (0, 2 * 2 * 2)
    assert found["typicality before finetuning"]["at_most"]
    assert made(mined, "features") <= found["features"]["forwards"] == 8 * 16
    assert found["features"]["at_most"], "the top 12 of some 20 patches may leave an image out"
    assert counted <= found["forwards"]
    assert found["rate"] > 0
    assert found["cost"] == pytest.approx(2.5 * found["time"] / 3600)
    assert found["disk"] > 4 * 2e6, "the tiny pipeline's weights"


def test_where_it_says_no_bound_the_number_is_the_runs(parameters: Make, tmp_path: Path) -> None:
    exact = parameters(tmp_path / "root", top=100, before_shards=-1)
    found = told(exact)
    assert not any(found[stage]["at_most"] for stage in ("finetune", "typicality", "features"))
    assert not found["typicality before finetuning"]["at_most"]
    assert found["forwards"] == 6 * 2 + 2 * 2 * 2 * 16 + 8 * 16


def test_of_a_root_that_is_partly_there_only_the_rest_is_told(root: Path, parameters: Make) -> None:
    whole = told(parameters(root))
    assert whole["forwards"] == whole["time"] == whole["disk"] == 0
    assert "rate" not in whole, "no model is started where nothing is to be done"
    opened = open_root(str(root))
    (finetuned,) = read_manifests(opened, "finetune")
    measured = read_manifests(opened, "typicality")
    taken = next(m for m in measured if m.inputs[1] == finetuned.facts["digest"])
    retract(opened, "typicality", taken.key)
    for features in read_manifests(opened, "features")[:2]:
        retract(opened, "features", features.key)
    rest = told(parameters(root))
    assert rest["finetune"]["there"] == 1
    assert (rest["typicality"]["units"], rest["typicality"]["there"]) == (3, 2)
    assert rest["typicality"]["forwards"] == 2 * 2 * taken.counts["images"]
    assert (rest["features"]["units"], rest["features"]["there"]) == (4, 2)
    summary = mine(parameters(root))
    embedded = summary["unet_forwards"] - rest["typicality"]["forwards"]
    assert 0 < embedded <= rest["features"]["forwards"] == 8 * 2 * 4


def test_another_top_leaves_the_maps_as_they_are(root: Path, parameters: Make) -> None:
    found = told(parameters(root, top=100))
    assert found["typicality"]["forwards"] == found["finetune"]["forwards"] == 0
    assert found["features"]["forwards"] == 8 * 16 and not found["features"]["at_most"]


def test_images_are_not_opened(parameters: Make, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            (folder / label / f"{number}.jpg").write_bytes(b"no image")
    found = told(parameters(tmp_path / "root", dataset=str(folder)))
    assert found["images"] == 6


def test_new_images_beside_indexed_ones_are_counted_apart(tmp_path: Path) -> None:
    folder, root = _photos(tmp_path), str(tmp_path / "root")
    listed = (str(folder), None, MINED, 1000)
    assert [one.shard for one in expected_shards(None, *listed)] == [None]
    index.fn(root, *listed, 0.25)
    (known,) = expected_shards(open_root(root), *listed)
    assert known.shard is not None
    assert (known.images, known.labels) == (4, {"cats": 2, "dogs": 2})
    Image.new("RGB", (64, 64), "teal").save(folder / "cats" / "new.png")
    assert expected_shards(open_root(root), *listed) == [known, ExpectedShard(1, {"cats": 1})]
    (folder / "dogs" / "0.png").unlink()
    whole, new = expected_shards(open_root(root), *listed)
    assert (whole.shard, new.images) == (None, 1), "what is left of it is told by indexing"


def test_what_the_run_would_refuse_is_refused(root: Path, parameters: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the results of dataset"):
        told(parameters(root, dataset=str(_photos(tmp_path))))
    with pytest.raises(InputError, match="each label needs 9"):
        told(parameters(tmp_path / "new", min_images=9))
    with pytest.raises(InputError, match="leave it out"):
        told(parameters(root, mode="recompute"))
    with pytest.raises(InputError, match="--cost-per-hour should be 0 or more"):
        told(parameters(root), -1.0)


def _photos(folder: Path) -> Path:
    for label in ("cats", "dogs"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(
                folder / "photos" / label / f"{number}.png"
            )
    return folder / "photos"


def test_the_command_says_it_as_a_table(
    root: Path, parameters: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    given = parameters(root).model_dump(exclude_unset=True)
    words = [word for name, value in given.items()
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    app(["mine", "--dry-run", *words], result_action="return_value")
    said = capfd.readouterr().out
    assert "images                        16, 16 of them indexed already\n" in said
    assert "typicality                    nothing: it is there\n" in said
    mining = {"--k", "--top"}
    pairs = [words[at : at + 2] for at in range(0, len(words), 2) if words[at] not in mining]
    app(
        ["typicality", "--dry-run", *(word for pair in pairs for word in pair)],
        result_action="return_value",
    )
    said = capfd.readouterr().out
    assert "typicality  nothing: it is there\n" in said
    assert "features" not in said
