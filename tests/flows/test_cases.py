"""Each row of the table in `tests/cases/README.md`, as a user would run into it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from faulty_proxy import FaultyProxy
from image_server import image_server
from s3_servers import moto_server
from written_images import photo, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.pixels import decode_rgb
from diffmining_core.models.files import LORA_FILE, ModelSource, find_model
from diffmining_core.models.pipelines import load_pipeline
from diffmining_core.recipes import MINED
from diffmining_core.store.ledger import Manifest, finished, read_manifests, read_table
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import open_run
from flows.checks import check_dataset
from flows.index import index_split
from flows.parameters import IndexParameters
from tasks.index import TABLE, index

CASES = Path(__file__).parents[1] / "cases"

Case = Callable[[Path], None]
cases: dict[str, Case] = {}
"""By what the first cell of its row begins with."""


def case(row: str) -> Callable[[Case], Case]:
    def add(test: Case) -> Case:
        cases[row] = test
        return test

    return add


def rows() -> list[str]:
    """The first cells of the table."""
    lines = (CASES / "README.md").read_text(encoding="utf-8").splitlines()
    return [line[2:].partition(" | ")[0] for line in lines if line.startswith("| ")][1:]


@dataclass(frozen=True)
class Indexed:
    """What `index` made of a dataset."""

    state: Manifest
    table: pa.Table

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.state.counts)

    @property
    def labels(self) -> dict[str, int]:
        good = self.table.filter(pa.compute.is_null(self.table["set_aside"]))
        counted = good["label"].value_counts().to_pylist()
        return {row["values"]: row["counts"] for row in counted}

    @property
    def reasons(self) -> dict[str, str]:
        """By the name of a file that is set aside."""
        rows = self.table.select(["uri", "set_aside"]).to_pylist()
        return {row["uri"].rpartition("/")[2]: row["set_aside"] for row in rows if row["set_aside"]}

    @property
    def left_out(self) -> dict[str, Any]:
        return dict(self.state.facts["left_out"])


def indexed(dataset: Path | str, root: Path, **options: Any) -> Indexed:
    parameters = IndexParameters(dataset=str(dataset), root=str(root), **options)
    check_dataset(parameters)
    units, shards = index_split(parameters, MINED, index.fn)
    opened = open_root(str(root))
    state = finished(opened, units[-1].stage, units[-1].key)
    by_key = {manifest.key: manifest for manifest in read_manifests(opened, "index")}
    tables = [read_table(opened, by_key[shard.key], TABLE) for shard in shards]
    counts = state.counts
    assert counts["listed"] == counts["pairs"] + counts["rows_set_aside"] + counts["left_out"]
    return Indexed(state, pa.concat_tables(tables))


def copied(tmp_path: Path, *names: str) -> Path:
    """These cases, and the photos that they name, in a folder of their own."""
    folder = tmp_path / "cases"
    for name in (*names, "photos"):
        if (CASES / name).is_dir():
            shutil.copytree(CASES / name, folder / name, dirs_exist_ok=True)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(CASES / name, folder / name)
    return folder


@case("`quotes_one.tsv`")
def stray_quotes(tmp_path: Path) -> None:
    folder = copied(tmp_path, "quotes_one.tsv", "quotes_two.tsv", "quotes_two.csv")
    for name in ("quotes_one.tsv", "quotes_two.tsv"):
        found = indexed(folder / name, tmp_path / name)
        assert found.labels == {"hat": 8, "shoes": 8, "dress": 8}
    found = indexed(folder / "quotes_two.csv", tmp_path / "csv")
    assert found.counts["listed"] == 24
    assert found.labels == {"hat": 7, "shoes": 7, "dress": 8}
    assert found.reasons.keys() == {"quotes_two.csv#line=7", "quotes_two.csv#line=17"}


@case("`utf16.csv`")
def utf16(tmp_path: Path) -> None:
    found = indexed(copied(tmp_path, "utf16.csv") / "utf16.csv", tmp_path / "root")
    assert found.counts["images"] == found.counts["listed"] == 12


@case("`tar_dots/0.tar`")
def dots_in_names_of_a_tar(tmp_path: Path) -> None:
    found = indexed(CASES / "tar_dots" / "0.tar", tmp_path / "root")
    assert found.counts["images"] == found.counts["listed"] == 12
    names = {uri.rpartition("/")[2] for uri in found.table["uri"].to_pylist()}
    assert names == {f"IMG_2024.05.{n:02d}.jpg" for n in range(6)}  # of each of two labels


@case("tars whose samples have several images")
def several_images_of_a_sample(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(6):
        members |= {
            f"{n}.cls": b"hat",
            f"{n}.depth.png": photo(n, 60, 60),
            f"{n}.jpg": photo(n),
            f"{n}.mask.png": photo(n, 70, 70),
        }
    (tmp_path / "plain.tar").write_bytes(tar_of(members))
    found = indexed(tmp_path / "plain.tar", tmp_path / "root")
    assert found.counts["images"] == 6
    assert set(found.table["width"].to_pylist()) == {48}
    assert found.counts["left_out"] == 12
    unclear = {name: data for name, data in members.items() if not name.endswith(".jpg")}
    (tmp_path / "unclear.tar").write_bytes(tar_of(unclear))
    with pytest.raises(InputError, match=r"depth\.png.*mask\.png"):
        indexed(tmp_path / "unclear.tar", tmp_path / "root2")


@case("a byte-order mark in")
def byte_order_marks(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(4):
        members |= {f"{n}.jpg": photo(n), f"{n}.cls": b"\xef\xbb\xbf" * (n % 2) + b"hat"}
        members |= {f"{n + 4}.jpg": photo(n + 4), f"{n + 4}.txt": "shoes".encode("utf-16")}
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    assert indexed(tmp_path / "0.tar", tmp_path / "root").labels == {"hat": 4, "shoes": 4}
    folder = copied(tmp_path, "left_out")
    recipe = str(CASES / "bom.toml")
    found = indexed(folder / "left_out", tmp_path / "root2", recipe=recipe)
    assert found.labels == {"hat": 4}


@case("`endings/`")
def endings(tmp_path: Path) -> None:
    found = indexed(CASES / "endings", tmp_path / "root", max_bad_share=1)
    assert found.counts["listed"] == sum(path.is_file() for path in (CASES / "endings").rglob("*"))
    assert found.labels.items() >= {"hat": 10, "shoes": 6, "web": 6, "noext": 6}.items()
    assert found.labels.get("phone", 0) + len(found.reasons) == 6
    assert all("heif" in reason.lower() for reason in found.reasons.values())


@case("`splits/`")
def splits_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"splits/\*'"):
        indexed(CASES / "splits", tmp_path / "root")
    assert set(indexed(CASES / "splits" / "*", tmp_path / "root").labels) == {"hat", "shoes"}


@case("a root inside its own dataset")
def a_root_inside_its_dataset(tmp_path: Path) -> None:
    folder = copied(tmp_path, "photos") / "photos"
    for _ in range(2):
        with pytest.raises(InputError, match="inside"):
            indexed(folder, folder / "mined")
    assert sorted(path.name for path in folder.iterdir()) == ["dress", "hat", "shoes"]


@case("`nas_rubbish/`")
def rubbish_of_file_servers(tmp_path: Path) -> None:
    found = indexed(CASES / "nas_rubbish", tmp_path / "root")
    assert found.labels == {"hat": 8, "shoes": 8, "dress": 8}
    files = sum(path.is_file() for path in (CASES / "nas_rubbish").rglob("*"))
    assert found.counts["listed"] == files
    assert found.counts["left_out"] == files - 24


@case("`twelve_bit/`")
def greys_of_twelve_bits(tmp_path: Path) -> None:
    for path in (CASES / "twelve_bit").iterdir():
        pixels = np.asarray(decode_rgb(path.read_bytes()))
        assert pixels.max() > 230
    shutil.copytree(CASES / "twelve_bit", tmp_path / "xrays" / "chest")
    assert indexed(tmp_path / "xrays", tmp_path / "root").labels == {"chest": 4}


@case("`metadata_faults/`")
def faults_of_metadata(tmp_path: Path) -> None:
    found = indexed(CASES / "metadata_faults", tmp_path / "root")
    assert found.reasons == {}
    files = sum(path.is_file() for path in (CASES / "metadata_faults").rglob("*"))
    assert found.counts["images"] == found.counts["listed"] == files


@case("`img2dataset/`")
def img2dataset(tmp_path: Path) -> None:
    try:
        found = indexed(CASES / "img2dataset", tmp_path / "root", max_bad_share=1)
    except InputError as error:
        assert "img2dataset/*.tar'" in str(error) or "label" in str(error)
    else:
        assert not any(" " in label for label in found.labels)  # a caption


@case("`lora/a32`")
def lora_scales(tmp_path: Path) -> None:
    """That other files are merged as diffusers does it is in tests/core/models/test_lora.py."""
    base = load_pipeline("tiny").unet.state_dict()
    for name, change in (("a32", 76.063), ("a2", 1.689)):
        path = CASES / "lora" / name / LORA_FILE
        merged = load_pipeline(ModelSource("tiny", lora=str(path))).unet.state_dict()
        own = UNet2DConditionModel.from_pretrained(find_model("tiny").folders["unet"])
        pipeline = StableDiffusionPipeline(
            unet=own, feature_extractor=None, requires_safety_checker=False,
            **dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker")),
        )  # fmt: skip
        pipeline.load_lora_weights(str(path))
        pipeline.fuse_lora(components=["unet"])
        pipeline.unload_lora_weights()
        torch.testing.assert_close(merged, own.state_dict(), atol=1e-5, rtol=0)
        changed = sum(float((merged[key] - base[key]).square().sum()) for key in base) ** 0.5
        assert changed == pytest.approx(change, rel=1e-2)


@case("`schedulers/`")
def schedulers(tmp_path: Path) -> None:
    load_pipeline("tiny").save(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    of_case = json.loads((CASES / "schedulers" / "scheduler_config.json").read_text())
    for name in (of_case["_class_name"], "EDMEulerScheduler"):
        path.write_text(json.dumps(config | of_case | {"_class_name": name}))
        with pytest.raises(InputError, match=f"names '{name}'"):
            find_model(str(tmp_path))


@case("manifests with dead links")
def dead_links(tmp_path: Path) -> None:
    with image_server() as server:
        faults = {f"{server.url}/status/{n}": f"answers {n}" for n in (401, 403, 410, 429, 503)}
        faults |= {
            "https://no-such-host.invalid/a.png": "no-such-host.invalid",
            "http://127.0.0.1:9/a.png": "cannot be reached",
        }
        uris = [f"{server.url}/good.png", *faults]
        (tmp_path / "t.csv").write_text("uri,label\n" + "".join(f"{uri},hat\n" for uri in uris))
        allow = [f"{server.url}/", "http://127.0.0.1:9/", "https://"]
        found = indexed(tmp_path / "t.csv", tmp_path / "root", allow=allow, max_bad_share=1)
        tried = {n: server.asked[f"/status/{n}"] for n in (401, 403, 410, 429, 503)}
    assert found.labels == {"hat": 1}
    rows = found.table.select(["uri", "set_aside"]).to_pylist()
    reasons = {row["uri"]: row["set_aside"] for row in rows if row["set_aside"]}
    assert reasons.keys() == faults.keys()
    assert all(faults[uri] in reason for uri, reason in reasons.items())
    assert tried == {401: 1, 403: 1, 410: 1, 429: 4, 503: 4}


@case("CSV over 1 MB")
def long_csv_with_line_breaks(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    caption = "A hat,\nworn by “somebody”.\n" * 400
    with (folder / "long.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["uri", "caption", "label"])
        for path in sorted((CASES / "photos").rglob("*.jpg")) * 6:
            lines.writerow([path.relative_to(CASES), caption, path.parent.name])
    assert (folder / "long.csv").stat().st_size > 2**20
    found = indexed(folder / "long.csv", tmp_path / "root")
    assert found.labels == {"hat": 8, "shoes": 8, "dress": 8}
    assert found.counts["listed"] == 24 * 6


@case("Parquet: `label` twice")
def parquet_types(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    paths = sorted(folder.rglob("hat/*.jpg"))
    uris = [str(path.relative_to(folder)) for path in paths]
    data = [path.read_bytes() for path in paths]
    hats = ["hat"] * len(paths)

    def labels(table: pa.Table) -> dict[str, int]:
        pq.write_table(table, folder / "t.parquet")
        root = tmp_path / f"root{len(list(tmp_path.iterdir()))}"
        return indexed(folder / "t.parquet", root).labels

    twice = pa.Table.from_arrays([pa.array(uris), pa.array(hats), pa.array(hats)],
                                 ["uri", "label", "label"])  # fmt: skip
    with pytest.raises(InputError, match="label"):
        labels(twice)
    for values in (
        pa.array(hats, pa.string()).dictionary_encode(),
        pa.array([b"hat"] * 8, pa.binary()),
        pa.array(hats, pa.string_view()),
        pa.array(hats, pa.large_string()),
    ):
        assert labels(pa.table({"uri": uris, "label": values})) == {"hat": 8}
    assert labels(pa.table({"uri": uris, "label": [3.0] * 8})) == {"3": 8}
    sizes: list[float | None] = [128.0, None] * 4
    assert labels(pa.table({"uri": uris, "label": hats, "width": sizes, "height": sizes})) == {
        "hat": 8
    }
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        assert labels(pa.table({"image": pa.array(data, kind), "label": hats})) == {"hat": 8}
    paths_only = [{"bytes": None, "path": uri} for uri in uris]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    with pytest.raises(InputError, match="image"):
        labels(pa.table({"image": pa.array(paths_only, kind), "label": hats}))


@case("headings `URI,Label`")
def headings(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    text = io.StringIO()
    for path in sorted(folder.rglob("*.jpg")):
        text.write(f"{path.relative_to(folder)}, {path.parent.name}\n")
    lines = f"URI, Label\n{text.getvalue()}".encode()
    (folder / "T.CSV").write_bytes(lines)
    (folder / "t.csv.gz").write_bytes(gzip.compress(lines))
    for name in ("T.CSV", "t.csv.gz"):
        found = indexed(folder / name, tmp_path / name)
        assert found.labels == {"hat": 8, "shoes": 8, "dress": 8}


@case("`left_out.toml`")
def a_table_that_names_few(tmp_path: Path) -> None:
    found = indexed(CASES / "left_out", tmp_path / "root", recipe=str(CASES / "left_out.toml"))
    assert found.labels == {"hat": 4}
    reason = "there, but not named in the table"
    assert found.left_out[reason]["count"] == 4


@case("`HTTP_PROXY` set")
def proxies(tmp_path: Path) -> None:
    """Whole commands, also with a newer PREFECT_HOME: tests/e2e/test_temporary_server.py."""
    program = (
        "import sys, flows, httpx, requests; "
        "print(*(get(sys.argv[1]).status_code for get in (httpx.get, requests.get)))"
    )
    closed = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    with image_server() as server:
        ended = subprocess.run(
            [sys.executable, "-c", program, f"{server.url}/good.png"],
            env={**os.environ, **closed, "NO_PROXY": "example.org"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.stdout.split() == ["200", "200"], ended.stderr


@case("a store that answers 501")
def a_store_without_conditions(tmp_path: Path) -> None:
    with moto_server() as server:
        bucket = f"cases-{uuid4().hex}"  # moto's servers of one process share their buckets
        server.make_bucket(bucket)
        with (
            FaultyProxy(server.environment["AWS_ENDPOINT_URL"], {"501": 1.0}) as proxy,
            server.with_changes(AWS_ENDPOINT_URL=proxy.endpoint).used(),
            pytest.raises(InputError, match="create a file only where there is none"),
        ):
            open_run(open_root(f"s3://{bucket}/run"), {"dataset": "photos"})


def test_every_row_of_the_table_is_a_case() -> None:
    found = rows()
    assert len(found) == len(cases)
    assert all(sum(row.startswith(start) for row in found) == 1 for start in cases)


@pytest.mark.parametrize("row", cases)
def test_case(row: str, tmp_path: Path) -> None:
    cases[row](tmp_path)
