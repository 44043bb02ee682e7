"""Shards of redrawn images: what is in them, which images they come from, and that they go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.pixels import content_id, load_pixels
from diffmining_core.models.files import TINY
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.roots import open_root
from tasks import translation as stage
from tasks.index import dataset_shards, good_images, index
from tasks.models import Device, base_model
from tasks.translation import (
    chosen_sources,
    measured_sources,
    source_ids,
    translated_shard,
    translation,
    translation_unit,
)
from tasks.typicality import typicality
from tasks.units import Done

CPU = Device("cpu", "float32")
PROMPTS = {"prompt": "An image of {label}.", "null_prompt": ""}
OPTIONS = {
    **PROMPTS,
    "size": 64,
    "steps": 5,
    "inversion_stride": 100,
    "start": "inverted",
    "guidance": 7.5,
}
LABELS = ["Almara", "Borvik", "Cendria"]


@pytest.fixture
def dataset(tmp_path: Path, scenes: Path) -> Path:
    """Two scenes of three countries; one of them is wider."""
    for label in LABELS:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for path in sorted((scenes / label).iterdir())[:2]:
            shutil.copy(path, tmp_path / "photos" / label)
    wide = next(iter((tmp_path / "photos" / "Borvik").iterdir()))
    with Image.open(wide) as image:
        image.resize((180, 120)).save(wide)
    return tmp_path / "photos"


def indexed(root: Path, dataset: Path, rows: int) -> list[Shard]:
    *_, state = index.fn(str(root), str(dataset), None, "mined", rows, 0.25)
    return dataset_shards(str(root), state.key)


def translated(root: Path, shard: Shard, targets: list[str] = LABELS) -> Done:
    return translation.fn(str(root), shard, base_model(TINY), targets, OPTIONS, CPU, 4)


def test_a_shard_of_redrawn_images_is_a_shard_like_any_other(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PART_BYTES", 20_000)  # several files
    root = tmp_path / "root"
    (shard,) = indexed(root, dataset, 6)
    done = translated(root, shard)
    assert done.counts["images"] == 6 and done.counts["translations"] == 12
    assert done.counts["unet_forwards"] == 6 * (9 + 5 + 4 + 2 * 2 * 5)
    again = translated(root, shard)
    assert (again.key, again.computed) == (done.key, False)

    opened = open_root(str(root))
    shutil.move(root, tmp_path / "moved")  # what a unit holds is found where the root is
    root = tmp_path / "moved"
    opened = open_root(str(root))
    redrawn = translated_shard(str(root), done.key)
    assert dict(redrawn.labels) == dict.fromkeys(LABELS, 4) and redrawn.images == 12
    images = good_images(opened, redrawn)
    sources = source_ids(opened, redrawn)
    originals = {image.image_id: image for image in good_images(opened, shard)}
    pairs = set()
    for image in images:
        source = originals[sources[image.image_id, image.label]]
        pairs.add((source.image_id, image.label))
        assert image.label != source.label
        assert (image.width, image.height) == (source.width, source.height)
        assert image.uri.endswith(f"/{source.image_id}.png")
        pixels = load_pixels(image.uri, 64, image.image_id)
        assert np.abs(pixels.astype(float) - load_pixels(source.uri, 64)).mean() < 90
    assert len(pairs) == 12
    files = [name for name in finished(opened, "translation", done.key).files if "pictures" in name]
    assert len(files) > 1
    psnr = read_table(opened, finished(opened, "translation", done.key), "shard.parquet")
    assert all(value > 5 for value in psnr.column("reconstruction_psnr").to_pylist())

    options = {**PROMPTS, "size": 64, "draws": 2, "t_range": [0.1, 0.7], "seed": 42}
    maps = typicality.fn(str(root), redrawn, base_model(TINY), options, CPU, 8, 0.25)
    assert maps.counts["pairs"] == 12


def test_the_unit_is_of_what_decides_the_images(tmp_path: Path, dataset: Path) -> None:
    (shard,) = indexed(tmp_path / "root", dataset, 6)
    model = base_model(TINY)
    keys = {
        translation_unit(shard, model, LABELS, OPTIONS).key,
        translation_unit(shard, model, LABELS[:2], OPTIONS).key,
        translation_unit(shard, model, LABELS, {**OPTIONS, "guidance": 5.0}).key,
        translation_unit(shard, model, LABELS, {**OPTIONS, "start": "official"}).key,
    }
    assert len(keys) == 4


def test_the_same_sources_are_chosen_of_any_shards(tmp_path: Path, dataset: Path) -> None:
    def chosen(rows: int) -> dict[str, str]:
        root = tmp_path / f"root{rows}"
        parts = chosen_sources(str(root), indexed(root, dataset, rows), LABELS, 1, seed=7)
        images = [one for part in parts for one in good_images(open_root(str(root)), part)]
        assert len(images) == 3
        return {image.label: image.image_id for image in images}

    assert chosen(6) == chosen(2) and set(chosen(4)) == set(LABELS)
    root = tmp_path / "root6"
    whole = indexed(root, dataset, 6)
    assert chosen_sources(str(root), whole, LABELS, 0, seed=7) == whole
    other = chosen_sources(str(root), whole, LABELS, 1, seed=9)
    assert other != chosen_sources(str(root), whole, LABELS, 1, seed=7)
    (some,) = chosen_sources(str(root), whole, LABELS[:2], 0, seed=7)
    assert dict(some.labels) == dict.fromkeys(LABELS[:2], 2)


def test_images_that_were_set_aside_in_measuring_are_not_redrawn(
    tmp_path: Path, dataset: Path
) -> None:
    """They were declared, so that nobody had opened them before."""
    images = sorted(dataset.glob("*/*.png"))
    rows = []
    for image in images:
        with Image.open(image) as opened:
            width, height = opened.size
        uri = image.relative_to(dataset).as_posix()
        id_ = content_id(image.read_bytes())
        size = {"width": width, "height": height}
        rows.append({"uri": uri, "label": image.parent.name, "image_id": id_, **size})
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), dataset / "images.csv")
    root = tmp_path / "root"
    shards = indexed(root, dataset / "images.csv", 2)
    first, second, third = [
        [image.uri for image in good_images(open_root(str(root)), shard)] for shard in shards
    ]
    for uri in [*first, second[0]]:
        Path(uri).write_bytes(b"no image")
    options = {**PROMPTS, "size": 64, "draws": 2, "t_range": [0.1, 0.7], "seed": 42}
    model = base_model(TINY)
    keys = [typicality.fn(str(root), one, model, options, CPU, 8, 1.0).key for one in shards]
    sources = measured_sources(str(root), shards, keys)
    assert [key for _, key in sources] == keys[1:]
    left = [image for shard, _ in sources for image in good_images(open_root(str(root)), shard)]
    assert [image.uri for image in left] == [second[1], *third]
    with pytest.raises(InputError, match="all were set aside"):
        measured_sources(str(root), shards[:1], keys[:1])
