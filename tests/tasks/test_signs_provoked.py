"""Failures that are made on purpose, mined for real: each is to be said."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffmining_core.images.street_scenes import write_dataset
from flows.mine import mine
from flows.parameters import MineParameters

IMAGES = 20


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes: one country cut in two labels at random, one stamped, one with bars, one as it is."""
    drawn = tmp_path_factory.mktemp("drawn")
    write_dataset(drawn, 2 * IMAGES, seed=7)
    folder = tmp_path_factory.mktemp("spoiled")
    halves = np.random.default_rng(0).permutation(sorted((drawn / "Almara").iterdir()))
    _put(folder / "half one", halves[:IMAGES])
    _put(folder / "half two", halves[IMAGES:])
    _put(folder / "stamped", _scenes(drawn / "Borvik"), _stamp)
    _put(folder / "padded", _scenes(drawn / "Cendria"), _pad)
    _put(folder / "plain", _scenes(drawn / "Dorrava"))
    return folder


def _scenes(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())[:IMAGES]


def _put(
    folder: Path, files: Iterable[Path], change: Callable[[Image.Image], object] = lambda image: 0
) -> None:
    folder.mkdir()
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        change(image)
        image.save(folder / f"{Path(file).stem}.png")


def _stamp(image: Image.Image) -> None:
    draw, (width, height) = ImageDraw.Draw(image), image.size
    side = width // 6
    left, top, right, bottom = width - side - 6, height - side - 6, width - 6, height - 6
    draw.rectangle([left, top, right, bottom], fill=(240, 240, 240))
    draw.ellipse([left + 4, top + 4, right - 4, bottom - 4], fill=(200, 20, 160))
    draw.line([left, bottom, right, top], fill=(20, 20, 20), width=3)


def _pad(image: Image.Image) -> None:
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for left in (0, width - width // 6):
        draw.rectangle([left, 0, left + width // 6, height], fill=(16, 16, 16))


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.slow  # finetunes the tiny model for 100 steps
def test_spoiled_images_are_said_to_be_spoiled(spoiled: Path, tmp_path: Path) -> None:
    summary = mine(
        MineParameters(
            dataset=str(spoiled),
            root=str(tmp_path / "root"),
            size=64,
            finetune_steps=100,
            finetune_batch=8,
            learning_rate=2e-3,
            schedule="cosine",
            draws=8,
            k=4,
            top=60,
            patches_per_image=3,
            before_shards=0,
        )
    )
    labels = defaultdict(set)
    for sign in summary["signs"]:
        labels[sign["name"]].add(sign["label"])
    assert labels["watermark"] == {"stamped"}
    assert labels["padding"] == {"padded"}
    alike = [sign["evidence"] for sign in summary["signs"] if sign["name"] == "alike"]
    assert any("half one" in evidence or "half two" in evidence for evidence in alike)
    assert not any("padded" in evidence for evidence in alike)
    page = (tmp_path / "root" / "index.html").read_text()
    assert "sits at one place of many images" in page
    written = json.loads((tmp_path / "root" / "summary.json").read_text())["signs"]
    assert written == summary["signs"]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.slow  # finetunes the tiny model for 200 steps
def test_few_images_trained_long_are_said_to_be_memorised(spoiled: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for label in ("plain", "padded"):
        _put_in(few / label, sorted((spoiled / label).iterdir())[:10])
    summary = mine(
        MineParameters(
            dataset=str(few),
            root=str(tmp_path / "root"),
            size=64,
            finetune_steps=200,
            finetune_batch=8,
            learning_rate=2e-3,
            held_out=8,
            evaluate_every=40,
            draws=8,
            k=4,
            top=40,
            before_shards=0,
        )
    )
    (sign,) = [sign for sign in summary["signs"] if sign["name"] == "memorised"]
    assert "held-out" in sign["evidence"]
    assert "--finetune-steps" in sign["advice"]


def _put_in(folder: Path, files: Iterable[Path]) -> None:
    folder.parent.mkdir(exist_ok=True)
    _put(folder, files)
