"""Boxes as the known answer of the studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmining_core.images.addresses import current_fingerprint
from diffmining_core.images.shards import FoundImage, index_shard
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import complete
from diffmining_core.store.maps import RaggedMaps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import index
from tasks.evaluation import BOXES
from tasks.index import good_images
from tasks.study_truth import box_truth, measure_of

LEFT_HALF, RIGHT_HALF = (0.0, 0.0, 32.0, 64.0), (32.0, 0.0, 32.0, 64.0)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return open_root(str(tmp_path / "root"))


@pytest.fixture
def found(tmp_path: Path) -> list[FoundImage]:
    """Two photos of 64 × 64 px; the first has a box under its label."""
    rng = np.random.default_rng(0)
    images = []
    for place in range(2):
        uri = str(tmp_path / f"{place}.png")
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(uri)
        images.append(FoundImage(uri, "mass", current_fingerprint(uri)))
    return [replace(images[0], boxes=(LEFT_HALF,)), images[1]]


def indexed(root: Root, found: list[FoundImage], name: str) -> Shard:
    unit = Unit(index.STAGE, name, (), {})
    complete(root, unit, lambda attempt: attempt.write_table(index.TABLE, index_shard(found)))
    return Shard(unit.key, unit.key, unit.key, (), len(found), (), set_aside=0, declared=0)


def test_a_corrected_box_is_another_answer_and_no_box_is_none(
    root: Root, found: list[FoundImage]
) -> None:
    plain = [replace(image, boxes=()) for image in found]
    assert box_truth(root.url, [indexed(root, plain, "plain")], "photos") is None
    truth = box_truth(root.url, [indexed(root, found, "boxed")], "photos")
    assert truth is not None
    assert (truth.kind, truth.url, truth.source) == (BOXES, "photos", "boxes")
    corrected = [replace(found[0], boxes=(RIGHT_HALF,)), found[1]]
    other = box_truth(root.url, [indexed(root, corrected, "corrected")], "photos")
    assert other is not None
    assert other.digest != truth.digest


def test_maps_are_measured_against_the_boxes_of_their_images(
    root: Root, found: list[FoundImage]
) -> None:
    shard = indexed(root, found, "boxed")
    truth = box_truth(root.url, [shard], "photos")
    assert truth is not None
    measure = measure_of(root, [shard], truth, 64, 8)
    images = good_images(root, shard)
    hot = np.zeros((8, 8), np.float32)
    hot[:, :4] = 1  # as the box
    maps = RaggedMaps.pack(
        [hot, -hot],
        [hot, hot],
        [0.1, 0.1],
        [image.image_id for image in images],
        ["mass", "mass"],
        2,
    )
    uris = {(image.image_id, image.label): image.uri for image in images}
    (scores,) = measure.pixels(maps, uris).values()
    assert scores.base_rate == pytest.approx(0.5), "of the image with a box alone"
    assert scores.average_precision > 0.95
