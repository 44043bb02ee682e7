"""From images to the selected patches: shards, their order and batches leave no trace."""

from __future__ import annotations

import hashlib
from functools import reduce
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.street_scenes import draw_scene
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.patches.scoring import shard_patches
from diffmining_core.patches.selection import TopPatches
from diffmining_core.store.maps import RaggedMaps
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

OPTIONS = TypicalityOptions(PromptTemplate(), size=64, draws=2, t_range=(0.1, 0.7), seed=42)
PATCH = 16


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ShardImage]:
    """Ten scenes in two shapes; a row of every third under a second label too."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for i in range(10):
        path = folder / f"{i}.png"
        scene = draw_scene(np.random.default_rng(i), None, 96).image
        width = (64, 90)[i % 2]
        scene.crop((0, 0, width, 64)).save(path)
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        labels = ["Almara", "Borvik"] if i % 3 == 0 else [("Almara", "Borvik")[i % 2]]
        rows += [ShardImage(image_id, str(path), label, width, 64) for label in labels]
    return rows


def selection(pipeline: Pipeline, shards: list[list[ShardImage]], batch_size: int) -> pa.Table:
    """The ten highest, lowest and random patches of each label."""

    def add(top: TopPatches, shard: list[ShardImage]) -> TopPatches:
        maps, _ = shard_typicality(pipeline, shard, OPTIONS, batch_size)
        rows = [maps[place] for place in range(len(shard))]
        ragged = RaggedMaps.pack(
            [row.mean for row in rows],
            [row.m2 for row in rows],
            [row.null_loss for row in rows],
            [image.image_id for image in shard],
            [image.label for image in shard],
            OPTIONS.draws,
        )
        patches = shard_patches(ragged, cell=8, size=PATCH, per_image=3, seed=3)
        uris = {(image.image_id, image.label): image.uri for image in shard}
        return top.add(patches, uris, "")

    return reduce(add, shards, TopPatches.empty(10, 3)).table()


def cut(rows: list[ShardImage], size: int) -> list[list[ShardImage]]:
    """Shards of so many images, the rows of one together."""
    of_image: dict[str, list[ShardImage]] = {}
    for row in rows:
        of_image.setdefault(row.image_id, []).append(row)
    images = list(of_image.values())
    return [list(chain(*images[i : i + size])) for i in range(0, len(images), size)]


def test_shards_of_any_size_and_order_select_the_same_bits(
    pipeline: Pipeline, images: list[ShardImage]
) -> None:
    """At one image a batch an image meets the same arithmetic wherever it lies."""
    expected = selection(pipeline, [images], 1)
    assert expected.num_rows == 2 * 3 * 10
    assert selection(pipeline, cut(images, 3), 1).equals(expected)
    assert selection(pipeline, cut(images, 1)[::-1], 1).equals(expected)
    single = cut(images, 1)
    shuffled = list(chain(*(single[i] for i in np.random.default_rng(0).permutation(10))))
    assert selection(pipeline, [shuffled], 1).equals(expected)


def test_batches_select_the_same_patches(pipeline: Pipeline, images: list[ShardImage]) -> None:
    """The size of a batch moves a map by last bits (5e-6 of losses of 1), and no patch here."""
    expected = selection(pipeline, [images], 1)
    for shards, batch_size in ((cut(images, 4), 3), ([images], 8)):
        found = selection(pipeline, shards, batch_size)
        assert found.drop_columns("typicality").equals(expected.drop_columns("typicality"))
        np.testing.assert_allclose(
            found["typicality"].to_numpy(), expected["typicality"].to_numpy(), atol=5e-6, rtol=0
        )
