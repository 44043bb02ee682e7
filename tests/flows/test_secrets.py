"""Secrets in addresses are planted in a dataset, and looked for in everything that a run leaves."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from guarded_images import Guarded, guarded_images
from PIL import Image

from diffmining_core import open_results
from diffmining_core.errors import InputError
from diffmining_core.images.pixels import content_id
from diffmining_core.recipes import MINED
from diffmining_core.store.ledger import read_manifests, read_table, verify
from diffmining_core.store.roots import open_root
from flows import export
from flows.forms import refusal
from flows.parameters import MineParameters
from tasks.index import index

SIGNATURE, PASSWORD, TOKEN, WRONG = (
    "5igned-by-me",
    "pa55-word-of-mine",
    "t0ken-of-mine",
    "wr0ng-one",
)
SECRETS = (
    *(SIGNATURE, PASSWORD, TOKEN, WRONG),
    base64.b64encode(f"reader:{PASSWORD}".encode()).decode(),
)
USER = "mallory-of-the-home-folder"
PER_LABEL = 6
SMALL = (
    *("--size=64", "--finetune-steps=2", "--finetune-batch=2", "--held-out=0", "--draws=2"),
    *("--preview-every=0", "--k=2", "--top=6", "--device=cpu", "--before-shards=0"),
)


@dataclass(frozen=True)
class Left:
    """What a run has left: its root, and all that the commands said.

    asked: how often mining asked the server `host` for each image.
    """

    root: Path
    manifest: Path
    host: str
    asked: Counter[str]
    said: str


def photo(label: str, number: int) -> bytes:
    pixels = np.random.default_rng([len(label), number]).integers(0, 256, (8, 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((80, 64)).save(data, "PNG")
    return data.getvalue()


IMAGES = {
    f"/{label}/{number}.png": photo(label, number)
    for label in ("oslo", "turin")
    for number in range(PER_LABEL)
}


def address(host: str, path: str, number: int) -> str:
    """The address of an image with one of the secrets in it."""
    if number % 3 == 0:
        return f"http://{host}{path}?X-Amz-Expires=60&X-Amz-Signature={SIGNATURE}"
    return f"http://reader:{PASSWORD}@{host}{path}" if number % 3 == 1 else token_url(host, path)


def token_url(host: str, path: str) -> str:
    return f"http://{host}{path}?k={TOKEN}"


def write_manifest(file: Path, host: str, faults: Sequence[str] = ()) -> None:
    """Every image under its label, some of them declared, and rows of which each has a fault."""
    lines = ["uri,label,image_id,width,height"]
    for path, data in IMAGES.items():
        _, label, name = path.split("/")
        number = int(name.removesuffix(".png"))
        size = f"{content_id(data)},80,64" if number == 0 else ",,"
        lines.append(f"{address(host, path, number)},{label},{size}")
    file.write_text("\n".join([*lines, *faults, ""]))


def command(*words: str, status: int = 0) -> str:
    """What a command says, with all that the library that fetches images logs.

    status: the expected one, -1 for any.
    """
    environment = {
        **os.environ,
        "PREFECT_LOGGING_EXTRA_LOGGERS": "urllib3.connectionpool",
    }
    program = (
        "import logging; logging.getLogger('urllib3.connectionpool').setLevel('DEBUG'); "
        "from flows.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True
    )
    said = ended.stdout + ended.stderr
    assert status in (ended.returncode, -1), said
    return said


@pytest.fixture(scope="module")
def left(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    """A dataset of guarded images was indexed and mined, and faulty ones indexed."""
    home = tmp_path_factory.mktemp("home") / USER
    home.mkdir()
    manifest, root = home / "photos.csv", home / "mined"
    guarded = Guarded(IMAGES, PASSWORD, {f"k={TOKEN}"})
    guarded.queries.add(f"X-Amz-Expires=60&X-Amz-Signature={SIGNATURE}")
    with guarded_images(guarded) as served:
        gone = f"{token_url(served.host, '/oslo/gone.png')},oslo,,,"
        crooked = (
            f"{token_url(served.host, '/oslo/1.png')},oslo,,,,,{WRONG}@x http://u:{PASSWORD}@h"
        )
        write_manifest(manifest, served.host, [gone, crooked])
        allow = f"--allow=http://{served.host}/"
        said = command("mine", f"--dataset={manifest}", f"--root={root}", allow, *SMALL)
        asked = Counter(served.asked)
        refused = f"{token_url(served.host, '/oslo/1.png').replace(TOKEN, WRONG)},oslo,,,"
        write_manifest(home / "refused.csv", served.host, [refused])
        places = f"--dataset={home / 'refused.csv'}", f"--root={home / 'refused'}"
        said += command("index", *places, allow, status=-1)
        yield Left(root, manifest, served.host, asked, said)


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder as text; of a Parquet file also what is in its columns."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path, path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            yield path, repr(pq.read_table(path).to_pydict())


def planted(text: str, wanted: Sequence[str] = SECRETS) -> list[str]:
    return [secret for secret in wanted if secret in text]


def planted_below(folder: Path, wanted: Sequence[str] = SECRETS) -> dict[str, list[str]]:
    found = {}
    for path, text in texts(folder):
        if secrets := planted(text, wanted):
            found[str(path.relative_to(folder))] = secrets
    return found


def test_the_images_are_mined_though_each_was_asked_for_once(left: Left) -> None:
    assert json.loads((left.root / "summary.json").read_text())["images"] == len(IMAGES)
    assert {left.asked[path] for path in IMAGES} == {1}
    root = open_root(str(left.root))
    (shard,) = read_manifests(root, "index")
    verify(root, shard)
    rows = read_table(root, shard, "shard.parquet").to_pylist()
    good = {row["uri"]: row for row in rows if row["set_aside"] is None}
    plain = {f"http://{left.host}{path}" for path in IMAGES}
    assert {re.sub(r"#[0-9a-f]{16}$", "", uri) for uri in good} == plain
    assert all(row["stored"] and not row["declared"] for row in good.values())
    assert [row["stored"] for row in rows if row["set_aside"]] == [None, None]


def test_no_file_at_a_root_holds_a_secret(left: Left) -> None:
    assert planted_below(left.root) == {}
    assert planted_below(left.root.parent / "refused") == {}


def test_nothing_said_or_logged_holds_a_secret(left: Left) -> None:
    assert "urllib3.connectionpool" in left.said, "the library that fetches the images was heard"
    assert [line for line in left.said.splitlines() if planted(line)] == []


def test_prefect_keeps_no_secret(left: Left) -> None:
    """Neither in flow runs, their parameters and states, nor in logs and artifacts."""
    kept = Path(os.environ["PREFECT_HOME"]).parent
    assert any(USER in text for path, text in texts(kept) if "prefect.db" in path.name)
    assert planted_below(kept) == {}


@pytest.mark.parametrize("form", ["coco", "csv", "fiftyone", "huggingface"])
def test_no_export_holds_a_secret(form: Any, left: Left, tmp_path: Path) -> None:
    export.export(str(left.root), form=form, to=str(tmp_path / "there"))
    assert planted_below(tmp_path / "there") == {}
    if form == "huggingface":  # which is there to be published
        assert planted_below(tmp_path / "there", [USER]) == {}


def test_the_published_page_tells_no_folder_of_this_machine(left: Left, tmp_path: Path) -> None:
    shutil.copytree(left.root / "report", tmp_path / "page" / "report")
    shutil.copy(left.root / "index.html", tmp_path / "page")
    assert planted_below(tmp_path / "page", [USER, str(Path.home()) + "/"]) == {}
    tables = {path.name for path in tmp_path.rglob("*.parquet")}
    assert {"selection.parquet", "images.parquet", "set_aside.parquet"} <= tables


def test_results_read_the_images_that_the_root_keeps(left: Left) -> None:
    results = open_results(str(left.root))
    rows = results.images().to_pylist()
    assert len(rows) == len(IMAGES)
    assert results.pixels(rows[0]).shape == (64, 80, 3)


def test_addresses_that_are_signed_again_index_nothing_again(left: Left) -> None:
    signed_once = left.manifest.read_text()
    left.manifest.write_text(signed_once.replace("X-Amz-Expires=60", "X-Amz-Expires=3600"))
    *shards, _ = index.fn(
        str(left.root), str(left.manifest), None, MINED, 1000, 0.25, [f"http://{left.host}/"]
    )
    assert shards == []


PLACES = {"dataset": "photos", "root": "mined"}


@pytest.mark.parametrize(
    "places",
    [
        {"dataset": f"http://reader:{PASSWORD}@127.0.0.1:1/photos.csv"},
        {"dataset": f"http://127.0.0.1:1/photos.parquet?sig={SIGNATURE}"},
        {"root": f"s3://reader:{PASSWORD}@bucket/mined"},
        {"model": f"https://{TOKEN}@127.0.0.1:1/model"},
        {"text_encoder": f"https://127.0.0.1:1/model?token={TOKEN}"},
        {"lora": f"http://127.0.0.1:1/a.safetensors?t={TOKEN}"},
    ],
)
def test_addresses_with_secrets_are_refused_before_a_run_is_made(places: dict[str, str]) -> None:
    with pytest.raises(InputError, match="do not put passwords, tokens or signatures") as refused:
        MineParameters.model_validate({**PLACES, **places})
    assert planted(str(refused.value)) == []
    (name,) = places
    form = MineParameters.model_json_schema()
    assert refusal({**PLACES, **places}, form, complete=True), f"a server stores no such {name}"
    assert not refusal(PLACES, form, complete=True)


def test_a_command_says_what_to_do_instead() -> None:
    dataset = f"--dataset=http://reader:{PASSWORD}@127.0.0.1:1/photos.csv"
    said = command("mine", dataset, "--root=mined", status=2)
    assert "AWS_PROFILE" in said
    assert planted(said) == []
