"""The same images from a folder, a manifest, tars and Parquet files are mined alike."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running_server import running_server
from stored import manifests
from written_images import image_table, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.reach import ALSO
from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.roots import open_root
from flows.index import index_dataset
from flows.mine import mine
from flows.parameters import IndexParameters, MineParameters

Make = Callable[..., MineParameters]

SIDE = 128
"""Pixels along the side of a drawn scene."""


@pytest.fixture
def images(dataset: Path) -> list[Path]:
    return sorted(dataset.glob("*/*.png"))


def as_manifest(images: list[Path], folder: Path) -> Path:
    """A CSV that declares id and size, its addresses relative to it."""
    shutil.copytree(images[0].parents[1], folder / "photos")
    columns: dict[str, list[Any]] = {
        "uri": [f"photos/{path.parent.name}/{path.name}" for path in images],
        "label": [path.parent.name for path in images],
        "image_id": [hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in images],
        "width": [SIDE] * len(images),
        "height": [SIDE] * len(images),
    }
    pyarrow.csv.write_csv(pa.table(columns), folder / "photos.csv")
    return folder / "photos.csv"


def as_tars(images: list[Path], folder: Path) -> Path:
    for number in (0, 1):
        members: dict[str, bytes] = {}
        for path in images[number::2]:
            members[path.name] = path.read_bytes()
            members[f"{path.stem}.cls"] = path.parent.name.encode()
        (folder / f"{number:05d}.tar").write_bytes(tar_of(members))
    return folder


def as_parquet(images: list[Path], folder: Path) -> Path:
    table = image_table(
        {path.name: path.read_bytes() for path in images}, [path.parent.name for path in images]
    )
    pq.write_table(table, folder / "train-00000.parquet", row_group_size=5)
    return folder / "train-00000.parquet"


def selection(root: Path, summary: dict[str, Any]) -> pa.Table:
    opened = open_root(str(root))
    report = finished(opened, "report", summary["report"])
    return read_table(opened, finished(opened, "selection", report.inputs[0]), "selection.parquet")


@pytest.mark.parametrize("kind", [as_manifest, as_tars, as_parquet])
def test_every_kind_of_source_is_mined_like_the_folder(
    prefect_api: str,
    images: list[Path],
    kind: Callable[[list[Path], Path], Path],
    parameters: Make,
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    source = kind(images, tmp_path / "data")
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    tables = []
    for root, changes in (("folder", {}), ("other", {"dataset": str(source)})):
        summary = mine(parameters(tmp_path / root, finetune_steps=0, **changes))
        assert (summary["images"], summary["set_aside"]) == (16, 0)
        assert (tmp_path / root / "index.html").exists()
        tables.append(selection(tmp_path / root, summary))
    columns = ["label", "kind", "label_rank", "image_id", "y", "x"]
    assert tables[0].select(columns).equals(tables[1].select(columns))
    np.testing.assert_allclose(
        tables[0]["typicality"].to_numpy(), tables[1]["typicality"].to_numpy(), rtol=1e-4, atol=1e-6
    )
    after = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert after == before, "a dataset is only read"
    again = mine(parameters(tmp_path / "other", finetune_steps=0, dataset=str(source)))
    assert again["computed"] == {}


def test_declared_images_that_prove_unusable_are_set_aside_by_name_and_the_counts_add_up(
    prefect_api: str,
    images: list[Path],
    parameters: Make,
    tmp_path: Path,
    forwards: Counter[str],
) -> None:
    manifest = as_manifest(images, tmp_path)
    photos = tmp_path / "photos"
    (photos / "Almara" / images[0].name).unlink()
    half = photos / "Borvik" / "Borvik_00001.png"
    half.write_bytes(half.read_bytes()[:-300])
    other = photos / "Cendria" / "Cendria_00001.png"
    Image.new("RGB", (64, 64), "teal").save(other)
    root = tmp_path / "root"
    small = parameters(root, dataset=str(manifest), before_shards=0)
    with pytest.raises(InputError, match="more than the 25% allowed"):
        mine(small.model_copy(update={"shard_rows": 2}))
    shutil.rmtree(root)

    forwards.clear()
    summary = mine(small.model_copy(update={"shard_rows": 100}))
    assert (summary["images"], summary["set_aside"]) == (13, 3)
    assert sum(summary["labels"].values()) == summary["images"] + summary["set_aside"]
    assert forwards["images"] == summary["unet_forwards"]
    page = (root / "index.html").read_text()
    for name in (images[0].name, half.name, other.name):
        assert name in page
    shown = selection(root, summary)["uri"].to_pylist()
    assert not {images[0].name, half.name, other.name} & {Path(uri).name for uri in shown}

    half.write_bytes(images[[p.name for p in images].index(half.name)].read_bytes())
    assert mine(small.model_copy(update={"shard_rows": 100}))["computed"] == {}
    mended = mine(small.model_copy(update={"shard_rows": 100, "mode": "recompute"}))
    assert (mended["images"], mended["set_aside"]) == (14, 2)


def test_index_alone_says_what_a_dataset_holds(
    prefect_api: str, images: list[Path], tmp_path: Path
) -> None:
    manifest = as_manifest(images, tmp_path)
    with manifest.open("a") as file:
        file.write('"photos/nothing.png","",,,\n')
    parameters = IndexParameters(dataset=str(manifest), root=str(tmp_path / "root"), shard_rows=10)
    counts = index_dataset(parameters)
    no_label = str(manifest.parent / "photos/nothing.png")
    assert counts == {
        "listed": 17, "images": 16, "pairs": 16, "set_aside": 1, "left_out": 0, "declared": 16,
        "set_aside_reasons": {"it has no label": {"count": 1, "names": [no_label]}},
        "left_out_reasons": {}, "scaled": {}, "shards": 2, "indexed": 2,
        "labels": dict.fromkeys(("Almara", "Borvik", "Cendria", "Dorrava"), 4),
    }  # fmt: skip
    assert index_dataset(parameters)["indexed"] == 0
    (state,) = (tmp_path / "root" / "manifests" / "dataset").iterdir()
    state.write_text("{")
    assert index_dataset(parameters) == {**counts, "indexed": 0}


def test_images_on_the_web_are_mined_where_they_are_allowed(
    prefect_api: str,
    images: list[Path],
    parameters: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ALSO, "")
    serve_photos = partial(QuietFiles, directory=str(images[0].parents[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve_photos)
    with running_server(server):
        place = f"http://127.0.0.1:{server.server_port}/"
        lines = [f"{place}{path.parent.name}/{path.name},{path.parent.name}\n" for path in images]
        manifest = tmp_path / "photos.csv"
        manifest.write_text("uri,label\n" + "".join(lines))
        wanted = parameters(tmp_path / "root", finetune_steps=0, dataset=str(manifest))
        with pytest.raises(InputError, match=f"of its images 16 .* add --allow {place}$"):
            index_dataset(index_parameters(wanted))
        wanted = wanted.model_copy(update={"allow": (place,)})
        assert index_dataset(index_parameters(wanted))["images"] == 16
        # As on a worker, which has indexed nothing: batch flows are told by their own parameters.
        monkeypatch.setenv(ALSO, "")
        monkeypatch.setattr("flows.index.set_reach", lambda *given: None)
        assert mine(wanted)["images"] == 16
        server.shutdown()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""


def index_parameters(wanted: MineParameters) -> IndexParameters:
    return IndexParameters(**{name: getattr(wanted, name) for name in IndexParameters.model_fields})


def test_a_tar_that_was_half_indexed_is_gone_on_with(
    prefect_api: str, images: list[Path], tmp_path: Path
) -> None:
    tar = as_tars(images, tmp_path) / "00000.tar"
    parameters = IndexParameters(dataset=str(tar), root=str(tmp_path / "root"), shard_rows=3)
    assert index_dataset(parameters)["shards"] == 3
    before = manifests(parameters.root)
    lost = next(unit for unit in before if unit.startswith("index/"))
    for stage, key in [lost.split("/"), ("dataset", "*")]:
        for manifest in (tmp_path / "root" / "manifests" / stage).glob(f"{key}.json"):
            manifest.unlink()
    counts = index_dataset(parameters)
    assert (counts["images"], counts["shards"], counts["indexed"]) == (8, 3, 1)
    after = manifests(parameters.root)
    assert after.keys() == before.keys()
    made = {unit for unit in after if after[unit].attempt != before[unit].attempt}
    assert {unit for unit in made if unit.startswith("index/")} == {lost}
