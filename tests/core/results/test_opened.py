"""Results read back: what the API gives is what the units hold, from any kind of root."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import polars
import pytest
from small_run import CELL, HOSTILE, LABELS, PATCH, PER_LABEL, PLANTED, SIZE

from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import image_typicality
from diffmining_core.results.opened import MinedResults, open_results
from diffmining_core.store.ledger import finished, read_manifest
from diffmining_core.store.maps import mapped_pairs, read_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import RUN_FORMAT
from diffmining_core.store.units import canonical_json


def test_tables_go_to_pandas_and_polars(results: MinedResults) -> None:
    patches = results.patches()
    frame, polar = patches.to_pandas(), polars.from_arrow(patches)
    assert isinstance(polar, polars.DataFrame)
    assert len(frame) == len(polar) == patches.num_rows == 2 * 3 * 12
    assert set(frame["kind"]) == {"highest", "random", "lowest"}
    of_one = results.patches("borvik", "highest").to_pandas()
    assert of_one["label_rank"].tolist() == list(range(12))
    assert (of_one["typicality"].diff().dropna() <= 0).all()
    clusters = results.clusters("borvik").to_pandas()
    assert sorted(clusters["image_id"]) == sorted(of_one["image_id"])
    members = results.cluster_summary("borvik")["members"].to_pylist()
    assert clusters.groupby("cluster").size().tolist() == members


def test_what_the_maps_know_of_is_found(results: MinedResults) -> None:
    first = results.patches("almara", "highest").to_pylist()[0]
    one = results.typicality(first["image_id"], "almara")
    assert one.dtype == np.float32 and one.shape == (SIZE // CELL, 80 // CELL)
    y, x = (at // CELL for at in PLANTED)
    assert one[y : y + 2, x : x + 2].min() > 1e-3 > np.median(one)
    before = results.typicality(first["image_id"], "almara", before=True)
    np.testing.assert_allclose(before, one / 4, rtol=1e-6)


def test_maps_come_one_by_one_and_as_the_table_of_images_says(results: MinedResults) -> None:
    made = results.made_from
    stored = [
        read_maps(results.root, finished(results.root, "typicality", key))
        for key in made.typicality
    ]
    expected = {
        (row["image_id"], row["label"]): row["typicality"]
        for maps in stored
        for row in image_typicality(maps).to_pylist()
    }
    images = {
        (row["image_id"], row["label"]): row["typicality"] for row in results.images().to_pylist()
    }
    assert images == expected
    for label in LABELS:
        by_image = dict(results.typicality_maps(label))
        assert len(by_image) == PER_LABEL
        for image_id, one in by_image.items():
            np.testing.assert_array_equal(one, results.typicality(image_id, label))
    assert len(list(results.typicality_maps())) == 2 * PER_LABEL
    assert len(list(results.typicality_maps(before=True))) == PER_LABEL
    for key, maps in zip(made.typicality, stored, strict=True):
        pairs = mapped_pairs(results.root, finished(results.root, "typicality", key))
        assert pairs == set(zip(maps.image_id, maps.label, strict=True))


def test_pixels_are_those_that_were_mined(results: MinedResults) -> None:
    row = results.patches("almara", "highest").to_pylist()[0]
    image, patch = results.pixels(row), results.patch_pixels(row)
    assert patch.shape == (PATCH, PATCH, 3) and patch.dtype == np.uint8
    y, x = row["y"], row["x"]
    np.testing.assert_array_equal(patch, image[y : y + PATCH, x : x + PATCH])
    shown = np.asarray(results.overlay(row))
    assert shown.shape == image.shape
    y, x = (at + PATCH // 2 for at in PLANTED)
    assert abs(shown[y, x].astype(int) - image[y, x]).max() > 30
    faint = np.asarray(results.overlay(row, scale=1.0))
    assert abs(faint[y, x].astype(int) - image[y, x]).max() <= 1


def test_features_are_those_of_the_clusters(results: MinedResults) -> None:
    features = results.features("borvik")
    assert features["image_id"].equals(results.patches("borvik", "highest")["image_id"])
    vectors = features["feature"].combine_chunks().flatten().to_numpy().reshape(12, 8)
    assert vectors.dtype == np.float32 and (vectors[:7, 0] > 2).all()


def test_images_that_left_the_dataset_have_no_maps(results: MinedResults) -> None:
    first, *others = results.made_from.dataset
    left = (replace(first, dropped=(0, 1)), *others)
    changed = MinedResults(results.root, results._report, replace(results.made_from, dataset=left))
    listed = {image_id for image_id, _ in changed.typicality_maps()}
    gone = {image_id for image_id, _ in results.typicality_maps()} - listed
    assert len(gone) == 2
    with pytest.raises(InputError, match="no typicality map"):
        changed.typicality(gone.pop(), first.labels[0][0])


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda results: results.patches("Paris"), "no label 'Paris'; it has almara, borvik"),
        (lambda results: results.features("Paris"), "no label"),
        (lambda results: next(results.typicality_maps("Paris")), "no label"),
        (lambda results: results.figure("Paris"), "no label"),
        (lambda results: results.patches(kind="best"), "highest, random or lowest"),
        (lambda results: results.typicality("0" * 32, "almara"), "no typicality map"),
        (lambda results: next(results.batches("prices")), "no table prices"),
        (lambda results: results.figure("almara").save("figure.tiff"), "png, svg, pdf"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    results: MinedResults, ask: object, says: str
) -> None:
    assert callable(ask)
    with pytest.raises(InputError, match=says):
        ask(results)


def test_a_place_without_a_finished_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_results(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no finished page; run `diffmining mine`"):
        open_results(str(tmp_path))
    (tmp_path / "summary.json").write_text('{"report": "0123"}')
    with pytest.raises(InputError, match="no finished page"):
        open_results(str(tmp_path))
    for damaged in (b"[" * 100_000, b"\xff", b"[]", b'{"report": 1}'):
        (tmp_path / "summary.json").write_bytes(damaged)
        with pytest.raises(InputError, match="no finished page"):
            open_results(str(tmp_path))


def test_a_page_of_an_older_version_has_no_table_of_images(
    mined_folder: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(mined_folder / "mined", tmp_path / "mined")
    opened = open_results(str(root))
    manifest = next((root / "manifests" / "report").iterdir())
    manifest.write_text(manifest.read_text().replace("data/images.parquet", "data/pictures"))
    assert opened.images().num_rows == 2 * PER_LABEL
    with pytest.raises(InputError, match=r"no table images .*run the same `diffmining mine` again"):
        open_results(str(root)).images()


def test_results_of_an_older_version_are_read_where_that_is_possible(
    results: MinedResults, mined_folder: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(mined_folder / "mined", tmp_path / "mined")
    older = {"format": RUN_FORMAT - 1, "identity": {"dataset": "/data"}}
    (root / "run.json").write_text(json.dumps(older))
    assert open_results(str(root)).patches().equals(results.patches())
    manifest = read_manifest(open_root(str(root)), "report", results._report.key)
    assert manifest is not None
    body = b'{"layout": "another"}'
    (root / manifest.attempt / "results.json").write_bytes(body)
    record = {"bytes": len(body), "sha256": sha256(body).hexdigest()}
    stored = {**asdict(manifest), "files": {**manifest.files, "results.json": record}}
    place = root / "manifests" / "report" / f"{manifest.key}.json"
    place.write_bytes(canonical_json(stored))
    with pytest.raises(InputError, match=r"an older diffmining stored.*mine again into a new root"):
        open_results(str(root))
    (root / "run.json").write_text(json.dumps({**older, "format": RUN_FORMAT + 1}))
    with pytest.raises(InputError, match="a newer diffmining stored"):
        open_results(str(root))


def test_hostile_labels_are_labels_like_others(hostile: MinedResults) -> None:
    assert set(hostile.labels) == set(HOSTILE)
    for label in HOSTILE:
        assert hostile.patches(label, "highest").num_rows == 12
        assert len(dict(hostile.typicality_maps(label))) == PER_LABEL


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_roots_elsewhere_are_read_alike(
    kind: str, results: MinedResults, request: pytest.FixtureRequest
) -> None:
    if kind == "memory":
        url = f"memory://{uuid4().hex}/mined"
    else:
        url = f"s3://{request.getfixturevalue('bucket')}/{uuid4().hex}"
    root = open_root(url)
    for path in Path(results.root.url).rglob("*"):
        if path.is_file():
            root.write_new(path.relative_to(results.root.url).as_posix(), path.read_bytes())
    opened = open_results(url)
    assert opened.patches().equals(results.patches())
    assert opened.images("almara").equals(results.images("almara"))
    row = opened.images("borvik").to_pylist()[0]
    ours, theirs = (one.typicality(row["image_id"], "borvik") for one in (results, opened))
    np.testing.assert_array_equal(ours, theirs)
    assert sum(batch.num_rows for batch in opened.batches("selection")) == 72


def test_an_empty_memory_root_is_no_result() -> None:
    fsspec.filesystem("memory").mkdirs("/empty-root", exist_ok=True)
    with pytest.raises(InputError, match=r"nothing is there|no finished page"):
        open_results("memory://empty-root")
