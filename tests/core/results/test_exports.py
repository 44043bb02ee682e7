"""Exports, read by the tools that they are for."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import small_run
from PIL import Image
from pycocotools.coco import COCO
from small_run import HOSTILE, LABELS, PATCH, PER_LABEL

from diffmining_core.errors import ImageError, InputError
from diffmining_core.images.pixels import model_size, original_square
from diffmining_core.results.exports import huggingface
from diffmining_core.results.exports.coco import export_coco
from diffmining_core.results.exports.csv_tables import export_csv
from diffmining_core.results.exports.fiftyone import export_fiftyone
from diffmining_core.results.exports.huggingface import export_huggingface
from diffmining_core.results.exports.mined_images import MinedImages
from diffmining_core.results.exports.target import open_target
from diffmining_core.results.opened import MinedResults
from diffmining_core.store.roots import open_root


@pytest.mark.parametrize(("width", "height"), [(160, 128), (163, 128), (97, 211), (40, 64)])
def test_a_square_is_found_in_the_original(width: int, height: int) -> None:
    size, y, x, side = 64, 17, 21, 20
    left, top, across, down = original_square(y, x, side, width, height, size)
    assert min(left, top) >= 0 and left + across <= width and top + down <= height
    original = np.zeros((height, width), np.uint8)
    right, bottom = round(left + across), round(top + down)
    original[round(top) : bottom, round(left) : right] = 255
    seen = np.asarray(model_size(Image.fromarray(original), size)) > 127
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    found = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    np.testing.assert_allclose(found, (y, x, y + side, x + side), atol=1)


@pytest.fixture(params=["plain", "hostile"])
def either(
    request: pytest.FixtureRequest, results: MinedResults, hostile: MinedResults
) -> MinedResults:
    return results if request.param == "plain" else hostile


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
def test_coco_has_the_patches_of_the_clusters(either: MinedResults, tmp_path: Path) -> None:
    images = MinedImages(either)
    export_coco(either, images, open_target(str(tmp_path / "coco")))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "coco" / "annotations.json")
    summary = either.cluster_summary().to_pylist()
    assert [one["supercategory"] for one in coco.dataset["categories"]] == [
        row["label"] for row in summary
    ]
    for category, row in zip(coco.dataset["categories"], summary, strict=True):
        boxes = coco.loadAnns(coco.getAnnIds(catIds=[category["id"]]))
        assert len(boxes) == row["members"]
        assert np.median([box["score"] for box in boxes]) == pytest.approx(row["median_typicality"])
    assert len(coco.imgs) == len(images)
    for box in coco.loadAnns(coco.getAnnIds()):
        image = coco.imgs[box["image_id"]]
        with Image.open(image["file_name"]) as photo:
            assert photo.size == (image["width"], image["height"])
        left, top, width, height = box["bbox"]
        assert left + width <= image["width"] and top + height <= image["height"]
        assert (width, height) == pytest.approx((2 * PATCH, 2 * PATCH), rel=0.02)
        assert coco.annToMask(box).sum() == pytest.approx(box["area"], rel=0.1)


def test_hugging_face_loads_the_dataset(
    either: MinedResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "GROUPS_PER_FILE", 5)
    monkeypatch.setattr(huggingface, "ROWS_PER_GROUP", 7)
    export_huggingface(either, MinedImages(either), open_target(str(tmp_path / "patches")))
    loaded = load_dataset(tmp_path / "patches", tmp_path / "cache")
    wanted = {
        (row["label"], row["kind"], row["label_rank"]): row for row in either.patches().to_pylist()
    }
    assert len(loaded) == len(wanted)
    members = 0
    for row in loaded:
        patch = wanted.pop((row["label"], row["kind"], row["label_rank"]))
        np.testing.assert_array_equal(np.asarray(row["image"]), either.patch_pixels(patch))
        assert row["typicality"] == pytest.approx(patch["typicality"])
        assert (row["cluster"] is not None) == (row["kind"] == "highest")
        members += row["cluster"] is not None
    assert not wanted and members == either.clusters().num_rows
    files = sorted((tmp_path / "patches" / "data").iterdir())
    assert max(pq.read_metadata(file).num_rows for file in files) == 35
    card = (tmp_path / "patches" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\npretty_name: What is typical of two places\n")


def load_dataset(folder: Path, cache: Path) -> Any:
    """The dataset in a folder, as Hugging Face's library reads it."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), cache_dir=str(cache), split="train")


def test_fiftyone_has_images_patches_and_heatmaps(either: MinedResults, tmp_path: Path) -> None:
    """Against the layout that FiftyOne documents; below it is asked itself, where it is there."""
    folder = tmp_path / "fiftyone"
    images = MinedImages(either, with_maps=True)
    export_fiftyone(either, images, open_target(str(folder)))
    metadata = json.loads((folder / "metadata.json").read_text())
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    declared = {field["name"] for field in metadata["sample_fields"]}
    given = {"_dataset_id", "created_at", "last_modified_at"}  # by FiftyOne, when it imports
    assert all({"id" if name == "_id" else name for name in one} | given == declared
               for one in samples)  # fmt: skip
    assert len({one["_id"]["$oid"] for one in samples}) == len(samples) == len(images)
    found = 0
    for sample in samples:
        with Image.open(folder / sample["filepath"]) as photo:
            assert photo.size == (sample["metadata"]["width"], sample["metadata"]["height"])
            pixels = np.asarray(photo)
        (label,) = (one["label"] for one in sample["ground_truth"]["classifications"])
        with Image.open(folder / sample["typicality"]["map_path"]) as heat:
            shares = np.asarray(heat) / 255
        one = either.typicality(sample["image_id"], label)
        scale = either.patches(label, "highest")["typicality"][0].as_py()
        np.testing.assert_allclose(shares, np.clip(one / scale, 0, 1), atol=1 / 255)
        for detection in sample["highest"]["detections"]:
            left, top, width, height = detection["bounding_box"]
            assert min(left, top) >= 0 and max(left + width, top + height) <= 1 + 1e-9
            inside = pixels[
                round(top * len(pixels)) : round((top + height) * len(pixels)),
                round(left * pixels.shape[1]) : round((left + width) * pixels.shape[1]),
            ]
            assert inside.shape[0] == pytest.approx(2 * PATCH, abs=1)
            found += 1
            assert detection["cluster"] is not None
    assert found == either.clusters().num_rows
    assert metadata["default_classes"] == either.labels


def test_fiftyone_itself_reads_it(results: MinedResults, tmp_path: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    folder = tmp_path / "fiftyone"
    export_fiftyone(results, MinedImages(results, with_maps=True), open_target(str(folder)))
    kind = fiftyone.types.FiftyOneDataset
    dataset = fiftyone.Dataset.from_dir(dataset_dir=str(folder), dataset_type=kind)
    try:
        assert dataset.count("highest.detections") == results.clusters().num_rows
        assert set(dataset.distinct("highest.detections.label")) == set(LABELS)
    finally:
        dataset.delete()


def test_csv_has_every_table(results: MinedResults, tmp_path: Path) -> None:
    export_csv(results, open_target(str(tmp_path / "csv")))
    files = {path.stem: path for path in (tmp_path / "csv").iterdir()}
    assert sorted(files) == results.tables
    for name, path in files.items():
        expected = [row for batch in results.batches(name) for row in batch.to_pylist()]
        read = pandas.read_csv(path)
        assert len(read) == len(expected)
        if expected:
            assert read.columns.tolist() == list(expected[0])
    assert len(pandas.read_csv(files["images"])) == 2 * PER_LABEL


def test_no_text_of_a_csv_file_is_a_formula(hostile: MinedResults, tmp_path: Path) -> None:
    export_csv(hostile, open_target(str(tmp_path / "csv")))
    labels = set()
    for path in (tmp_path / "csv").iterdir():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                labels.add(row.get("label", f"'{HOSTILE[0]}"))
                texts = (row[name] for name in ("label", "uri", "image_id") if name in row)
                assert not any(text.startswith(("=", "+", "-", "@")) for text in texts)
    assert labels == {f"'{HOSTILE[0]}", HOSTILE[1], f"'{HOSTILE[2]}"}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_an_export_goes_anywhere_twice_the_same(
    kind: str, results: MinedResults, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = uuid4().hex
    bucket = request.getfixturevalue("bucket") if kind == "s3" else None
    url = f"s3://{bucket}/{name}" if bucket else f"memory://{name}/there"
    target, here = open_target(url), open_target(str(tmp_path / "here"))
    write = export_huggingface if bucket else export_fiftyone  # of fewer files
    for place in (target, here):
        write(results, MinedImages(results, with_maps=True), place)
    there = open_root(url)
    assert there.names() == here.names() and there.names("data") == here.names("data")
    files = [f"data/{name}" for name in here.names("data")]
    for file in [*files, *(name for name in here.names() if "." in name)]:
        assert there.read_bytes(file) == here.read_bytes(file)
    with pytest.raises(InputError, match=r"should hold nothing yet, but has .*; remove"):
        open_target(url)


def test_an_image_that_has_changed_is_named(results: MinedResults, tmp_path: Path) -> None:
    images = ChangedFirst(results)
    with pytest.raises(ImageError, match=r"small_run\.py: its bytes are not those of its image id"):
        export_fiftyone(results, images, open_target(str(tmp_path / "a")))
    with pytest.raises(ImageError, match=r"small_run\.py"):
        export_huggingface(results, images, open_target(str(tmp_path / "b")))


class ChangedFirst(MinedImages):
    """As if another file lay where the first image was."""

    def __init__(self, results: MinedResults) -> None:
        super().__init__(results, with_maps=True)

    def __iter__(self) -> Iterator[Any]:
        elsewhere = str(Path(small_run.__file__))
        yield replace(next(super().__iter__()), uri=elsewhere)
